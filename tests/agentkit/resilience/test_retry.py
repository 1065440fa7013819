"""Whether a call is made again, when, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import BY_CODE, CallError, Overloaded, PeerLost, Unreachable, from_wire
from agentkit.resilience.policy import CallPolicy
from agentkit.resilience.retry import RetryBudget, may_retry, wait_s


@pytest.mark.parametrize("code", BY_CODE)
@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_a_handlers_own_error_is_never_asked_for_again(code: str, idempotent: bool, told: bool) -> None:
    error: CallError = from_wire(code, "", False, {}) if told else BY_CODE[code](retry_safe=False)
    allowed = {"internal", "cancelled"} if told and idempotent else {"peer_lost"} if idempotent and not told else set()
    assert may_retry(error, idempotent=idempotent) == (code in allowed)


def test_what_certainly_did_not_run_is_made_again() -> None:
    assert may_retry(Unreachable(), idempotent=False)
    assert may_retry(Overloaded(), idempotent=False)
    assert may_retry(from_wire("overloaded", "", True, {}), idempotent=False)
    assert not may_retry(PeerLost(), idempotent=False)
    assert not may_retry(from_wire("unreachable", "", False, {}), idempotent=True), (
        "its handler's peer, which it has retried"
    )


def test_waits_are_1_s_then_doubled_give_or_take_a_fifth() -> None:
    waits = [wait_s(CallPolicy(), tries, Unreachable(), draw) for tries in (1, 2, 3) for draw in (0.0, 0.5, 1.0)]
    assert waits == pytest.approx([0.8, 1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 4.8])


def test_the_overloaded_says_itself_how_long_to_stay_away() -> None:
    error = Overloaded(details={"retry_after_ms": 40})
    assert wait_s(CallPolicy(), 1, error, 0.0) == pytest.approx(0.04)
    assert 0.08 <= wait_s(CallPolicy(), 2, error, 0.9) <= 0.12


@pytest.mark.parametrize("told", ["soon", None, float("nan"), -5, 1e300, True])
def test_nonsense_about_coming_again_is_survived(told: object) -> None:
    assert 0 <= Overloaded(details={"retry_after_ms": told}).retry_after_ms <= 3_600_000


@given(st.lists(st.booleans(), max_size=400))
def test_retries_are_at_most_the_reserve_and_a_tenth_of_the_calls(steps: list[bool]) -> None:
    budget = RetryBudget(0.1, 10)
    calls = retries = 0
    for is_call in steps:
        if is_call:
            calls += 1
            budget.earn()
        else:
            retries += budget.spend()
        assert retries <= 10 + calls * 0.1 + 0.01


def test_a_storm_spends_the_reserve_and_then_a_tenth() -> None:
    budget = RetryBudget(0.1, 10)
    retries = 0
    for _ in range(1000):
        budget.earn()
        retries += budget.spend()
    assert 100 <= retries <= 110
