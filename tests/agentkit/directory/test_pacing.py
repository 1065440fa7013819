from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.directory.pacing import AWAY_S, ROUND_S, STEP_S, Backoff, feed_due_s, next_index, step_pause_s


@given(st.integers(0, 2**63), st.one_of(st.integers(-5, 2**64), st.none(), st.text(), st.just("")))
def test_an_index_is_waited_on_only_while_it_grows(asked: int, told: object) -> None:
    found = next_index(asked, told)
    assert found.index == 0 or found.index >= max(asked, 1)
    assert found.was_reset == (asked > 0 and found.index == 0)


def test_an_index_that_goes_backwards_is_a_reset() -> None:
    assert next_index(100, "7").was_reset
    assert next_index(100, "7").index == 0
    assert (next_index(100, "100").index, next_index(0, "7").index) == (100, 7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_pauses_grow_to_a_bound_and_begin_anew_after_success(draws: list[float]) -> None:
    left = iter(draws)
    backoff = Backoff(lambda: next(left))
    pauses = [backoff.failed() for _ in draws]
    assert all(AWAY_S[0] / 2 <= pause <= AWAY_S[1] for pause in pauses)
    backoff.succeeded()
    backoff.draw = lambda: 1.0
    assert backoff.failed() == AWAY_S[0]


@given(st.integers(0, 100_000))
def test_a_round_is_spread_but_not_for_ever(calls: int) -> None:
    assert step_pause_s(calls) <= STEP_S
    assert step_pause_s(calls) * calls <= ROUND_S


@given(st.floats(0, 1e9), st.floats(1, 100))
def test_ttls_are_fed_before_they_end(fed_s: float, ttl_s: float) -> None:
    assert fed_s <= feed_due_s(fed_s, ttl_s, fed_s) <= fed_s + ttl_s * 0.7 + 1e-6
    assert feed_due_s(None, ttl_s, fed_s) == fed_s
