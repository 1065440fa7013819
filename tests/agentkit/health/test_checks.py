"""From results of checks to one verdict."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError
from agentkit.health.checks import CheckPolicy, Health, HealthBoard, Verdict
from startup.plan.phase import Health as LauncherHealth


def board(*names: str, retries: int = 3) -> HealthBoard:
    made = HealthBoard(CheckPolicy(retries=retries))
    made.declare(names)
    return made


def test_without_checks_an_agent_is_ok_and_may_start() -> None:
    assert board().verdict == Verdict(Health.OK, ())
    assert board().all_passed_once


def test_startup_waits_until_every_check_has_passed_once() -> None:
    b = board("model", "disk")
    assert not b.all_passed_once
    b.passed("model", at_s=1.0)
    b.failed("disk", "full", at_s=1.0)
    assert not b.all_passed_once
    b.passed("disk", at_s=2.0)
    assert b.all_passed_once
    b.failed("disk", "full", at_s=3.0)
    assert b.all_passed_once


def test_a_check_that_has_not_run_makes_nothing_worse() -> None:
    assert board("model").verdict.health is Health.OK


def test_failures_in_a_row_go_from_degraded_to_failing_and_one_pass_heals() -> None:
    b = board("model", retries=3)
    seen = []
    for at_s in range(4):
        b.failed("model", "not loaded", at_s=float(at_s))
        seen.append(b.verdict.health)
    assert seen == [Health.DEGRADED, Health.DEGRADED, Health.FAILING, Health.FAILING]
    assert b.verdict.reason == "check model failed 4 times in a row: not loaded"
    b.passed("model", at_s=9.0, took_s=0.1)
    assert b.verdict == Verdict()
    assert (b.checks["model"].failures, b.checks["model"].reason, b.checks["model"].at_s) == (0, "", 9.0)


def test_one_retry_means_failing_at_once() -> None:
    b = board("model", retries=1)
    b.failed("model", "gone", at_s=0.0)
    assert b.verdict == Verdict(Health.FAILING, ("check model failed: gone",))


def test_a_dependency_stopped_by_an_operator_degrades_until_it_is_back() -> None:
    b = board("model")
    b.note("dependency A", "A stopped by operator")
    assert b.verdict == Verdict(Health.DEGRADED, ("A stopped by operator",))
    b.passed("model", at_s=1.0)
    assert b.verdict.health is Health.DEGRADED
    b.note("dependency A", "")
    assert b.verdict == Verdict()


def test_notes_replace_what_their_source_said_and_may_fail_the_agent() -> None:
    b = board()
    b.note("own words", "slow")
    b.note("own words", "dead", Health.FAILING)
    assert b.verdict == Verdict(Health.FAILING, ("dead",))
    b.note("own words", "fine", Health.OK)
    assert b.verdict == Verdict()


def test_all_reasons_are_told_checks_first() -> None:
    b = board("a", "b", retries=2)
    b.note("dependency C", "C is away")
    b.failed("b", "two", at_s=0.0)
    b.failed("a", "one", at_s=0.0)
    b.failed("a", "one", at_s=1.0)
    assert b.verdict.health is Health.FAILING
    assert b.verdict.reason == "check a failed 2 times in a row: one; check b failed: two; C is away"


def test_declaring_again_keeps_what_is_known() -> None:
    b = board("a")
    b.passed("a", at_s=1.0)
    b.declare(["a", "b"])
    assert b.checks["a"].passed_once
    assert list(b.checks) == ["a", "b"]


def test_a_result_of_an_unknown_check_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        board("a").passed("b", at_s=0.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("interval_s", 0.0), ("interval_s", math.nan), ("timeout_s", -1.0), ("timeout_s", math.inf), ("retries", 0)],
)
def test_a_policy_that_makes_no_sense_is_refused_with_its_key(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"health_check\.{key.removesuffix('_s')}: got"):
        CheckPolicy(**{key: value})  # type: ignore[arg-type]


def test_the_values_are_those_that_the_launcher_knows() -> None:
    assert [h.value for h in Health] == [h.value for h in LauncherHealth]


@given(
    retries=st.integers(1, 4),
    results=st.lists(st.tuples(st.sampled_from("abc"), st.booleans())),
    notes=st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from(["", "why"]), st.sampled_from(Health))),
)
def test_the_verdict_follows_from_the_latest_results_alone(
    retries: int, results: list[tuple[str, bool]], notes: list[tuple[str, str, Health]]
) -> None:
    b = board("a", "b", "c", retries=retries)
    for at_s, (name, good) in enumerate(results):
        b.passed(name, float(at_s)) if good else b.failed(name, "bad", float(at_s))
    for source, reason, health in notes:
        b.note(source, reason, health)
    streaks = {"a": 0, "b": 0, "c": 0}
    for name, good in results:
        streaks[name] = 0 if good else streaks[name] + 1
    said = {source: health if reason else Health.OK for source, reason, health in notes}
    failing = any(n >= retries for n in streaks.values()) or Health.FAILING in said.values()
    degraded = any(streaks.values()) or Health.DEGRADED in said.values()
    assert b.verdict.health is (Health.FAILING if failing else Health.DEGRADED if degraded else Health.OK)
    assert bool(b.verdict.reasons) is (b.verdict.health is not Health.OK)
