"""Who is sent to sleep when a machine's agents have more memory than they may: idle ones, the most memory per recent use first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.names import Incarnation
from startup.plan import budget
from startup.plan.budget import ASK_AGAIN_S, HALF_LIFE_S, MIN_GAIN_BYTES, TARGET, Candidate, Use
from startup.plan.phase import Phase
from startup.plan.process import Leaving, Process
from startup.spec.fleet import HibernatePolicy, ProgramTarget, ReadyWhen
from tests.startup.plan.builders import agent, aid

MIB = 2**20
LOOK_S = 10.0


def ready(depth: Any = "deep", name: str = "A", **facts: Any) -> Process:
    spec = agent(name, hibernate=HibernatePolicy(depth=depth))
    return Process(**{"spec": spec, "phase": Phase.READY, "incarnation": Incarnation(1), **facts})


def after_looks(*looks: tuple[Process, int]) -> Use:
    """What is known after looks LOOK_S apart, the first at 0."""
    use = None
    for number, (p, memory_bytes) in enumerate(looks):
        use = budget.looked(use, p, memory_bytes, number * LOOK_S)
    assert use is not None
    return use


def idle(p: Process, memory_bytes: int = 100 * MIB) -> Use:
    return after_looks((p, memory_bytes), (p, memory_bytes))


def why(p: Process, use: Use, now_s: float = LOOK_S) -> str:
    found = budget.candidate(p, use, now_s)
    assert isinstance(found, str), found
    return found


def test_one_that_was_not_called_between_two_looks_may_go_with_all_that_it_has() -> None:
    p = ready(requests=7)
    assert budget.candidate(p, idle(p), LOOK_S) == Candidate(id=p.id, depth="deep", gain_bytes=100 * MIB, recent=0.0)


def test_nobody_goes_at_the_first_look_nor_after_a_call_nor_just_after_its_process_began() -> None:
    p = ready(requests=7)
    assert why(p, after_looks((p, 100 * MIB))) == "it was called a moment ago"
    called = replace(p, requests=8)
    assert why(called, after_looks((p, 100 * MIB), (called, 100 * MIB))) == "it was called a moment ago"
    again = replace(p, incarnation=Incarnation(2))
    assert why(again, after_looks((p, 100 * MIB), (p, 100 * MIB), (again, 100 * MIB))) == "it was called a moment ago"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"depth": "never"}, "its file says `depth: never`"),
        ({"phase": Phase.STARTING}, "it is starting"),
        ({"leaving": Leaving.SLEEP}, "falling asleep"),
        ({"light_sleep": {"is_asleep": True}}, "it sleeps lightly already"),
        ({"offered": agent("A", config={"n": 2})}, "it is being changed"),
    ],
)
def test_who_can_not_go_is_told_with_the_reason(facts: Any, said: str) -> None:
    p = ready(**facts)
    assert why(p, idle(p)) == said


def test_programs_do_not_sleep() -> None:
    spec = agent("A", target=ProgramTarget(argv=("sleep", "5")), ready=ReadyWhen(after_s=0.1))
    p = ready(spec=spec)
    assert "a program" in why(p, idle(p))


def test_one_that_refused_is_not_asked_again_for_a_minute() -> None:
    p = ready()
    use = budget.refused(idle(p), "a call runs", LOOK_S)
    use = budget.looked(use, p, 100 * MIB, LOOK_S + ASK_AGAIN_S - 0.1)
    assert why(p, use, LOOK_S + ASK_AGAIN_S - 0.1) == "a call runs"
    assert isinstance(budget.candidate(p, use, LOOK_S + ASK_AGAIN_S), Candidate)


def test_light_sleep_is_worth_what_it_left_the_process_last_time() -> None:
    awake, asleep = ready("light"), ready("light", light_sleep={"is_asleep": True})
    use = after_looks((asleep, 30 * MIB), (awake, 90 * MIB), (awake, 90 * MIB))
    found = budget.candidate(awake, use, 2 * LOOK_S)
    assert isinstance(found, Candidate)
    assert (found.depth, found.gain_bytes) == ("light", 60 * MIB)
    use = budget.looked(use, awake, 30 * MIB + MIN_GAIN_BYTES - 1, 3 * LOOK_S)
    assert why(awake, use, 3 * LOOK_S) == "its sleep gives next to nothing back"


def test_requests_count_half_after_their_half_life_also_when_the_process_is_another() -> None:
    p = ready()
    use = budget.looked(None, p, MIB, 0.0)
    use = budget.looked(use, replace(p, requests=8), MIB, 0.0)
    use = budget.looked(use, replace(p, incarnation=Incarnation(2), requests=2), MIB, HALF_LIFE_S)
    assert use.recent == pytest.approx(4 + 2)


candidates = st.lists(
    st.builds(
        lambda number, depth, gain, recent: Candidate(
            id=aid(f"A{number}"), depth=depth, gain_bytes=gain, recent=recent
        ),
        st.integers(0, 99),
        st.sampled_from(["light", "deep"]),
        st.integers(MIN_GAIN_BYTES, 2000 * MIB),
        st.floats(0, 1e6),
    ),
    max_size=20,
    unique_by=lambda it: it.id,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(candidates, st.integers(0, 10_000 * MIB), st.integers(1, 10_000 * MIB))
def test_those_with_the_most_memory_per_use_go_and_no_more_than_are_needed(
    found: list[Candidate], used_bytes: int, budget_bytes: int
) -> None:
    chosen = budget.choose(used_bytes, budget_bytes, found)
    stay = [it for it in found if it not in chosen]
    if used_bytes <= budget_bytes:
        assert not chosen
        return
    assert [it.worth for it in chosen] == sorted((it.worth for it in chosen), reverse=True)
    assert all(it.worth <= chosen[-1].worth for it in stay if chosen)
    target_bytes = int(budget_bytes * TARGET)
    gains = [it.gain_bytes for it in chosen]
    assert used_bytes - sum(gains) <= target_bytes or not stay
    assert used_bytes - sum(gains[:-1]) > target_bytes


fates = st.lists(
    st.tuples(
        st.sampled_from(["light", "deep", "never"]),
        st.sampled_from(list(Phase)),
        st.booleans(),
        st.lists(st.integers(0, 3), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=10,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fates)
def test_whoever_was_called_since_the_last_look_sleeps_or_must_not_is_never_chosen(fates: Any) -> None:
    chosen_from, busy = [], set()
    for number, (depth, phase, is_asleep, calls) in enumerate(fates):
        p = ready(depth, f"A{number}", phase=phase, light_sleep={"is_asleep": is_asleep})
        looks, served = [], 0
        for more in calls:
            served += more
            looks.append((replace(p, requests=served), 100 * MIB))
        found = budget.candidate(looks[-1][0], after_looks(*looks), len(looks) * LOOK_S)
        if calls[-1] or len(calls) == 1 or depth == "never" or phase is not Phase.READY or is_asleep:
            busy.add(p.id)
        if isinstance(found, Candidate):
            chosen_from.append(found)
    chosen = {it.id for it in budget.choose(10**15, 1, chosen_from)}
    assert not chosen & busy
    assert len(chosen) + len(busy) == len(fates)


def test_those_that_stay_awake_are_named_with_the_most_memory_first() -> None:
    awake = [(aid(name), size * MIB, "why") for name, size in (("A", 5), ("B", 900), ("C", 30), ("D", 2000))]
    assert budget.in_words(awake) == "D 2,000 MiB (why), B 900 MiB (why), C 30 MiB (why)"
