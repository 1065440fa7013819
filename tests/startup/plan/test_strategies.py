"""Who is restarted with an agent that failed, and what its dependants say meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from startup.plan.desired import Desired
from startup.plan.phase import Health, Phase
from startup.plan.process import Process
from startup.plan.row import AgentRow
from startup.plan.strategies import companions
from startup.spec.fleet import AgentSpec, RestartPolicy
from tests.startup.plan.builders import agent, aid, revision
from tests.startup.plan.simulation import Behaviour, Simulation
from tests.startup.plan.test_reconcile_properties import MACHINES, fleets

GROUPS = ("x", "y")


def started(*specs: AgentSpec, machines: tuple[str, ...] = ("m",), **strategies: str) -> Simulation:
    sim = Simulation(*machines)
    sim.desire(revision(*specs, restart_strategies=strategies))
    sim.run(30.0)
    assert {sim.phase(spec.id) for spec in specs} == {Phase.READY}
    return sim


def crash(sim: Simulation, text: str) -> None:
    sim.exit(aid(text), -9)
    sim.settle()


def forks(sim: Simulation, *texts: str) -> list[int]:
    return [len(sim.forks[aid(text)]) for text in texts]


def process(sim: Simulation, text: str) -> Process:
    return sim.machines[aid(text).machine].core.processes[aid(text)]


def row(sim: Simulation, text: str) -> AgentRow:
    return sim.machines[aid(text).machine].rows[aid(text)]


CHAIN = (agent("A"), agent("B", "A"), agent("C", "B"), agent("D"), agent("E", "A", group="other"))


def test_without_a_strategy_only_the_one_that_failed_is_restarted() -> None:
    sim = started(*CHAIN)
    crash(sim, "A")
    sim.run(10.0)
    assert forks(sim, *"ABCDE") == [2, 1, 1, 1, 1]


def test_rest_for_one_restarts_those_of_the_group_that_depend_on_it_in_order() -> None:
    sim = started(*CHAIN, g="rest-for-one")
    crash(sim, "A")
    sim.run(10.0)
    assert forks(sim, *"ABCDE") == [2, 2, 2, 1, 1]
    second = [sim.forks[aid(text)][1] for text in "ABC"]
    assert second == sorted(second)
    assert process(sim, "B").stamps.unblocked_s >= process(sim, "A").stamps.ready_s  # type: ignore[operator]
    assert process(sim, "C").stamps.unblocked_s >= process(sim, "B").stamps.ready_s  # type: ignore[operator]


def test_all_restarts_the_whole_group_and_nobody_else() -> None:
    sim = started(*CHAIN, g="all")
    crash(sim, "C")
    sim.run(10.0)
    assert forks(sim, *"ABCDE") == [2, 2, 2, 2, 1]


def test_a_way_through_another_group_counts() -> None:
    sim = started(agent("A"), agent("Middle", "A", group="other"), agent("B", "Middle"), g="rest-for-one")
    crash(sim, "A")
    sim.run(10.0)
    assert forks(sim, "A", "Middle", "B") == [2, 1, 2]


def test_companions_spend_nothing_of_their_budget_and_say_with_whom_they_were_restarted() -> None:
    sim = started(*CHAIN, g="rest-for-one")
    crash(sim, "A")
    sim.run(0.06)
    assert row(sim, "B").reason == "restarted with A (rest-for-one)"
    sim.run(10.0)
    after = process(sim, "B")
    assert (after.restarts, after.failures, after.streak) == (0, (), 0)
    assert after.last_exit.startswith("restarted with A (rest-for-one) (")
    assert process(sim, "A").restarts == 1


def test_companions_on_another_machine_are_restarted_too() -> None:
    sim = started(agent("m/A"), agent("n/B", "m/A"), machines=MACHINES, g="rest-for-one")
    crash(sim, "m/A")
    sim.run(10.0)
    assert forks(sim, "m/A", "n/B") == [2, 2]


def test_an_operators_restart_takes_nobody_along() -> None:
    sim = started(*CHAIN, g="all")
    sim.machines["m"].core.restart([aid("A")], sim.now_s, may_roll=False)
    sim.settle()
    sim.run(10.0)
    assert forks(sim, *"ABCD") == [2, 1, 1, 1]


def test_one_that_is_not_restarted_takes_nobody_along() -> None:
    broken = replace(CHAIN[0], restart=RestartPolicy(policy="never"))
    sim = started(broken, *CHAIN[1:], g="all")
    crash(sim, "A")
    sim.run(10.0)
    assert forks(sim, *"ABCD") == [1, 1, 1, 1]
    assert (row(sim, "B").phase, row(sim, "B").health) == (Phase.READY, Health.DEGRADED)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), st.data())
def test_over_any_graph_each_failure_restarts_exactly_its_companions_once(
    specs: list[AgentSpec], data: st.DataObject
) -> None:
    grouped = [
        replace(spec, group=data.draw(st.sampled_from(GROUPS)), restart=RestartPolicy(max_attempts=1000))
        for spec in specs
    ]
    chosen = {group: data.draw(st.sampled_from(["one", "rest-for-one", "all"])) for group in GROUPS}
    sim = Simulation(*MACHINES)
    wanted = revision(*grouped, restart_strategies=chosen)
    sim.desire(wanted)
    sim.run(60.0)
    victim = data.draw(st.sampled_from(grouped))
    sim.exit(victim.id, -9)
    sim.settle()
    sim.run(60.0)
    expected = {victim.id, *companions(victim.id, Desired(wanted))}
    assert {spec.id for spec in grouped if len(sim.forks[spec.id]) == 2} == expected
    assert {len(times) for times in sim.forks.values()} <= {1, 2}
    assert {sim.phase(spec.id) for spec in grouped} == {Phase.READY}
    assert all(sim.machines[s.machine].core.processes[s.id].restarts == (s is victim) for s in grouped)
    members = {spec.id for spec in grouped if spec.group == victim.group}
    above = {victim.id}
    for _ in grouped:
        above |= {s.id for s in grouped if any(set(d.agents) & above for d in s.dependencies)}
    match chosen[victim.group]:
        case "all":
            assert expected == members
        case "rest-for-one":
            assert expected == members & above
        case _:
            assert expected == {victim.id}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), st.data())
def test_failures_in_any_number_end_with_everything_ready_and_no_more_forks_than_failures_allow(
    specs: list[AgentSpec], data: st.DataObject
) -> None:
    generous = [replace(spec, restart=RestartPolicy(max_attempts=1000)) for spec in specs]
    sim = Simulation(*MACHINES)
    sim.desire(revision(*generous, restart_strategies={"g": data.draw(st.sampled_from(["rest-for-one", "all"]))}))
    crashes = data.draw(st.integers(1, 6))
    for _ in range(crashes):
        sim.run(data.draw(st.sampled_from([0.0, 0.03, 0.12, 1.0])))
        sim.exit(data.draw(st.sampled_from(generous)).id, -9)
        sim.settle()
    sim.run(300.0)
    assert {sim.phase(spec.id) for spec in generous} == {Phase.READY}
    assert all(len(times) <= 1 + crashes for times in sim.forks.values())


# -- dependants


def test_direct_dependants_are_degraded_with_the_cause_while_it_restarts_and_recover_by_themselves() -> None:
    sim = started(agent("A"), agent("B", "A"), agent("C", "B"))
    before = process(sim, "B").incarnation
    crash(sim, "A")
    sim.run(0.01)
    assert (row(sim, "B").phase, row(sim, "B").health) == (Phase.READY, Health.DEGRADED)
    assert row(sim, "B").reason == "A restarting: killed by SIGKILL"
    assert row(sim, "C").health is Health.OK
    sim.run(10.0)
    assert (row(sim, "B").health, row(sim, "B").reason) == (Health.OK, "")
    assert process(sim, "B").incarnation == before


def test_the_cause_stays_through_back_off_and_the_slow_retry() -> None:
    sim = started(agent("A", restart=RestartPolicy(max_attempts=2, jitter=0.0)), agent("B", "A"))
    sim.behaviours[aid("A")] = Behaviour(fails=3)
    crash(sim, "A")
    sim.run(0.5)
    assert process(sim, "A").phase is Phase.BACKOFF
    assert row(sim, "B").reason == "A restarting: exit 1"
    sim.run(5.0)
    assert process(sim, "A").phase is Phase.FAILED
    assert row(sim, "B").reason == "A failed: exit 1"
    sim.behaviours[aid("A")] = Behaviour()
    sim.run(400.0)
    assert (process(sim, "A").phase, row(sim, "B").health) == (Phase.READY, Health.OK)


def test_one_of_two_providers_is_enough() -> None:
    both = replace(
        agent("B", "A"), dependencies=(replace(agent("B", "A").dependencies[0], agents=(aid("A"), aid("A2"))),)
    )
    sim = started(agent("A"), agent("A2"), both)
    crash(sim, "A")
    sim.run(0.01)
    assert row(sim, "B").health is Health.OK


@pytest.mark.parametrize("parks", [False, True])
def test_a_roll_degrades_nobody(parks: bool) -> None:
    sim = started(agent("A"), agent("B", "A"))
    sim.behaviours[aid("A")] = Behaviour(parks=parks)
    seen: set[Health] = set()
    sim.watch = lambda: seen.add(row(sim, "B").health)
    sim.machines["m"].core.restart([aid("A")], sim.now_s)
    sim.settle()
    sim.run(10.0)
    assert forks(sim, "A") == [2]
    assert seen == {Health.OK}
