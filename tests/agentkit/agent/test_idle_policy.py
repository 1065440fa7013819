"""When an agent is idle: pure, so over all that may come together."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.agent.hibernation.idle_policy import (
    MOST_BACKOFF,
    SHORT_SLEEPS,
    IdleBackoff,
    Signs,
    decide,
    keeps_awake,
    work_in,
)

TIMES = st.floats(0, 10_000)
AFTER = st.floats(0.01, 1_000)
COUNTS = st.integers(0, 3)
SIGNS = st.builds(
    Signs,
    active_s=TIMES,
    serving=COUNTS,
    stuck=COUNTS,
    handling=COUNTS,
    calling=COUNTS,
    leased=COUNTS,
    pinned=COUNTS,
    blocks=st.lists(st.sampled_from(["train", "index"]), max_size=3).map(tuple),
    awake_until_s=TIMES,
)
QUIET = Signs(active_s=100.0)


@given(SIGNS, AFTER, TIMES)
def test_nothing_sleeps_that_works_or_was_active_a_moment_ago(signs: Signs, after_s: float, now_s: float) -> None:
    verdict = decide(signs, after_s, now_s)
    if work_in(signs) or now_s < signs.active_s + after_s or now_s < signs.awake_until_s:
        assert not verdict.may_sleep
        assert verdict.look_again_s > now_s or verdict.look_again_s == pytest.approx(now_s)
    else:
        assert verdict.may_sleep


@given(SIGNS, AFTER, TIMES)
def test_what_only_waits_sleeps_exactly_when_it_is_looked_at_again(signs: Signs, after_s: float, now_s: float) -> None:
    quiet = replace(signs, serving=0, stuck=0, handling=0, calling=0, leased=0, pinned=0, blocks=())
    verdict = decide(quiet, after_s, now_s)
    if not verdict.may_sleep:
        assert verdict.look_again_s == max(quiet.active_s + after_s, quiet.awake_until_s)
        assert decide(quiet, after_s, verdict.look_again_s).may_sleep


@given(st.floats(5, 1_000), st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500)), max_size=20))
def test_one_timer_that_is_never_moved_finds_the_moment(after_s: float, works: list[tuple[float, float]]) -> None:
    """Work begins and ends as it likes; the looks are those that were asked for. Sleep comes no sooner than `after` past the last
    work that ended before it, and at most one look later than it could."""
    busy, at_s = [], 0.0
    for pause_s, length_s in works:
        busy.append((at_s + pause_s, at_s + pause_s + length_s))
        at_s = busy[-1][1]
    now_s = after_s
    for _ in range(10_000):
        ended = [end for _, end in busy if end <= now_s]
        running = sum(begin <= now_s < end for begin, end in busy)
        verdict = decide(Signs(active_s=max(ended, default=0.0), serving=running), after_s, now_s)
        if verdict.may_sleep:
            break
        assert verdict.look_again_s > now_s
        now_s = verdict.look_again_s
    else:
        pytest.fail("it never slept")
    assert not any(begin <= now_s < end for begin, end in busy)
    last_s = max((end for _, end in busy if end <= now_s), default=0.0)
    assert last_s + after_s == pytest.approx(now_s)


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        (replace(QUIET, serving=1), "a call runs"),
        (replace(QUIET, serving=3), "3 calls run"),
        (replace(QUIET, stuck=1), "a thread runs past its deadline"),
        (replace(QUIET, handling=2), "2 events are being handled"),
        (replace(QUIET, calling=1), "a call of its own has no answer yet"),
        (replace(QUIET, leased=1), "a raw socket is lent"),
        (replace(QUIET, pinned=2), "2 resources are in use"),
        (replace(QUIET, blocks=("train", "index", "train")), "busy with train, index"),
        (replace(QUIET, awake_until_s=212.0), "stays awake for another 12 s"),
        (QUIET, ""),
    ],
)
def test_what_keeps_it_awake_is_said_in_words(signs: Signs, words: str) -> None:
    assert keeps_awake(signs, 200.0) == words
    assert decide(signs, 50.0, 200.0).may_sleep is not bool(words)


def test_sleep_that_is_short_again_and_again_is_waited_for_longer() -> None:
    patience = IdleBackoff(10.0)
    waited = []
    for _ in range(SHORT_SLEEPS + 5):
        waited.append(patience.after_s)
        patience.slept(1.0)
    assert waited[:SHORT_SLEEPS] == [10.0] * SHORT_SLEEPS
    assert all(b >= a for a, b in pairwise(waited))
    assert patience.after_s == 10.0 * MOST_BACKOFF
    patience.slept(10.0)
    assert patience.after_s == 10.0
