"""How late the loop is, without a timer that looks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.observe.lag import WINDOW_S, LoopLag


def test_nothing_late_is_zero() -> None:
    assert LoopLag().worst_s(1000.0) == 0.0


def test_a_late_tick_is_remembered_for_a_window_and_forgotten_after_two() -> None:
    lag = LoopLag()
    lag.due(10.0)
    lag.ran(12.5)
    assert lag.worst_s(12.5) == 2.5
    assert lag.worst_s(12.5 + WINDOW_S) == 2.5
    assert lag.worst_s(12.5 + 2 * WINDOW_S) == 0.0


def test_the_worst_wins() -> None:
    lag = LoopLag()
    for late_s in (0.1, 0.4, 0.2):
        lag.late(late_s, 10.0)
    assert lag.worst_s(11.0) == 0.4


def test_who_asks_while_a_tick_is_overdue_is_told() -> None:
    lag = LoopLag()
    lag.due(10.0)
    assert lag.worst_s(9.0) == 0.0
    assert lag.worst_s(14.0) == 4.0


def test_a_tick_that_ran_is_not_overdue_any_more() -> None:
    lag = LoopLag()
    lag.due(10.0)
    lag.ran(10.0)
    lag.ran(50.0)
    assert lag.worst_s(50.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 40))))
def test_it_never_forgets_what_is_younger_than_a_window(events: list[tuple[float, float]]) -> None:
    lag, now_s, told = LoopLag(), 0.0, []
    for late_s, pause_s in events:
        now_s += pause_s
        lag.late(late_s, now_s)
        told.append((now_s, late_s))
        recent = [late for at, late in told if at > now_s - WINDOW_S]
        old = [late for at, late in told if at > now_s - 2 * WINDOW_S]
        assert max(recent) <= lag.worst_s(now_s) <= max(old)
