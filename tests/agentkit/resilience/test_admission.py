"""The gate: how much is let in, who waits, for how long, and in which order."""

from __future__ import annotations

import pytest

from agentkit.errors import ConfigError
from agentkit.resilience.admission import Gate
from agentkit.resilience.policy import ServePolicy


class Thing:
    def __init__(self, name: str, queued_s: float = 0.0) -> None:
        self.name, self.queued_s = name, queued_s

    def __repr__(self) -> str:
        return self.name


A, B, C, D = (Thing(name) for name in "abcd")


def gate(limit: int = 1, room: int = 2, **options: object) -> Gate[Thing]:
    return Gate("x", limit, room, **options)  # type: ignore[arg-type]


def test_things_wait_in_order_until_there_is_room() -> None:
    g = gate()
    assert not g.is_full()
    g.inside = 1
    assert g.is_full()
    assert [g.join(thing) for thing in (A, B, C)] == [True, True, False]
    assert g.next_waiting(0.0) is None, "nobody enters while it is full"
    g.inside = 0
    assert [g.next_waiting(0.0) for _ in range(3)] == [A, B, None]


def test_what_is_forgotten_makes_room_and_does_not_enter() -> None:
    g = gate()
    for thing in (A, B):
        g.join(thing)
    g.forget(A)
    g.forget(C)
    assert g.join(D)
    assert g.next_waiting(0.0) is B


def test_the_newest_goes_first_while_the_oldest_has_waited_for_half_of_its_time() -> None:
    g = gate(room=9, wait_s=0.05)
    for n in range(4):
        g.join(Thing(f"t{n}", queued_s=n * 0.01))
    assert [str(g.next_waiting(at_s)) for at_s in (0.02, 0.04, 0.041, 0.042)] == ["t0", "t3", "t2", "t1"]


def test_without_a_limit_of_waiting_the_order_is_kept() -> None:
    g = gate(room=9)
    for thing in (A, B, C):
        g.join(thing)
    assert [g.next_waiting(99.0) for _ in range(3)] == [A, B, C]


def test_the_urgent_go_first_and_have_places_of_their_own() -> None:
    g = gate(limit=2, room=1, spare=1)
    g.inside = 2
    assert g.is_full()
    assert not g.is_full(urgent=True)
    assert [g.join(A), g.join(B, urgent=True), g.join(C, urgent=True)] == [True, True, False]
    assert [g.next_waiting(0.0), g.next_waiting(0.0)] == [B, None], "the spare place is not for others"
    g.inside = 1
    assert g.next_waiting(0.0) is A


def test_a_wait_may_be_as_long_as_two_runs_within_reason() -> None:
    g = gate(wait_s=0.05, adapts=True)
    assert g.wait_s is None, "nobody knows yet"
    g.ran(0.005)
    assert g.wait_s == 0.05
    for _ in range(100):
        g.ran(0.1)
    assert g.wait_s == pytest.approx(0.2, rel=0.01)
    for _ in range(100):
        g.ran(9.0)
    assert g.wait_s == 1.0
    fixed = gate(wait_s=0.05)
    fixed.ran(9.0)
    assert fixed.wait_s == 0.05


def line(g: Gate[Thing], *queued_s: float) -> list[Thing]:
    things = [Thing(f"t{n}", queued_s=at_s) for n, at_s in enumerate(queued_s)]
    for thing in things:
        g.join(thing)
    return things


def test_who_waits_in_a_line_that_stands_is_over_its_limit_by_so_much() -> None:
    g = gate(room=9, wait_s=0.05)
    _, second = line(g, 1.0, 1.2)
    assert g.over_s(second, 0.05, 1.24) == pytest.approx(-0.01)
    assert g.over_s(second, 0.05, 1.26) == pytest.approx(0.01)


def test_a_burst_is_let_in_though_it_takes_longer_than_one_may_wait() -> None:
    g = gate(room=9, wait_s=0.05)
    (first,) = line(g, 1.0)
    assert g.over_s(first, 0.05, 1.15) == pytest.approx(-0.05)
    assert g.over_s(first, 0.05, 1.21) == pytest.approx(0.01)
    assert g.over_s(first, 0.05, 1.06, burst_s=0.0) == pytest.approx(0.01), "who says how long means it"
    g.forget(first)
    (later,) = line(g, 1.3)
    assert g.over_s(later, 0.05, 1.45) == pytest.approx(-0.05), "the line was empty meanwhile"


def test_a_standstill_of_the_process_is_nobodys_wait() -> None:
    g = gate(room=9, wait_s=0.05)
    first, second = line(g, 1.0, 1.01)
    assert g.over_s(first, 0.05, 1.6) == -0.05, "400 ms late: nothing ran, the wait begins anew"
    assert g.over_s(second, 0.05, 1.61) < 0
    assert g.next_waiting(1.62) is first, "nor is it a long line"
    assert g.over_s(second, 0.05, 1.81) == pytest.approx(0.01)


def test_handlers_that_keep_the_loop_busy_are_no_standstill() -> None:
    g = gate(room=9, wait_s=0.05)
    for _ in range(100):
        g.ran(0.5)
    (first,) = line(g, 1.0)
    assert g.over_s(first, 0.05, 1.6) == pytest.approx(0.4)


def test_the_refused_are_told_how_long_the_line_takes() -> None:
    g = gate(limit=10, room=1000)
    assert g.retry_after_ms == 100, "nothing is known yet"
    g.ran(0.005)
    assert g.retry_after_ms == 10
    for n in range(479):
        g.join(Thing(str(n)))
    assert g.retry_after_ms == 240
    g.usual_s = 60.0
    assert g.retry_after_ms == 5000


def test_a_wrong_policy_is_refused_where_it_is_written() -> None:
    for wrong in ({"running": 0}, {"queue_wait_s": -1}, {"cache_bytes": "1"}):
        with pytest.raises(ConfigError, match=r"ServePolicy\("):
            ServePolicy(**wrong)  # type: ignore[arg-type]
