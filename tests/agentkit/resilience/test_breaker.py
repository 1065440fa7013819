"""The breaker of one instance."""

from __future__ import annotations

import pytest

from agentkit.errors import BY_CODE, from_wire
from agentkit.resilience.breaker import Breaker, is_failure


def opened(at_s: float = 100.0) -> Breaker:
    breaker = Breaker(limit=5, rest_s=30.0)
    assert [breaker.failed(at_s) for _ in range(5)] == [False] * 4 + [True]
    return breaker


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    breaker = Breaker(limit=5, rest_s=30.0)
    for _ in range(4):
        breaker.failed(1.0)
        assert breaker.allows(1.0)
    breaker.failed(1.0)
    assert (breaker.allows(1.0), breaker.is_open, breaker.left_s(11.0)) == (False, True, 20.0)


def test_after_its_rest_one_call_may_probe() -> None:
    breaker = opened(100.0)
    assert not breaker.allows(129.9)
    assert breaker.allows(130.0)
    breaker.begins(130.0)
    assert not breaker.allows(130.0), "one probe at a time"


def test_a_probe_that_fails_opens_it_for_another_rest() -> None:
    breaker = opened(100.0)
    breaker.begins(130.0)
    assert not breaker.failed(131.0), "it was open already: nothing new to tell"
    assert not breaker.allows(160.9)
    assert breaker.allows(161.0)


def test_a_probe_that_says_nothing_lets_the_next_one_go() -> None:
    breaker = opened(100.0)
    breaker.begins(130.0)
    breaker.released()
    assert breaker.allows(130.0)
    breaker.begins(130.0)
    assert not breaker.allows(159.0)
    assert breaker.allows(160.0), "nobody ever told how the probe ended"


def test_calls_that_began_before_it_opened_do_not_prolong_its_rest() -> None:
    breaker = opened(100.0)
    breaker.failed(129.0)
    assert breaker.allows(130.0)


def test_a_connection_that_goes_counts_once_however_many_calls_it_had() -> None:
    breaker = Breaker(limit=5, rest_s=30.0)
    connections = [object() for _ in range(5)]
    for connection in connections[:4]:
        for _ in range(64):
            breaker.failed(1.0, connection)
    assert (breaker.failures, breaker.is_open) == (4, False)
    breaker.failed(1.0, connections[4])
    assert breaker.is_open


@pytest.mark.parametrize("code", BY_CODE)
def test_what_counts_against_an_instance_is_not_what_its_handlers_say(code: str) -> None:
    mine, told = BY_CODE[code](), from_wire(code, "", False, {})
    assert is_failure(mine) == (code in {"unreachable", "peer_lost", "deadline_exceeded", "internal"})
    assert is_failure(told) == (code in {"deadline_exceeded", "internal"}), "of somebody that its handler called"
