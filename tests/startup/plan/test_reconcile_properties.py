"""Over random acyclic fleets on two machines: order, once only, the exact closure of a failure, and a down that leaves nothing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from startup.plan.phase import Phase
from startup.spec.fleet import AgentSpec, RestartPolicy
from tests.startup.plan.builders import agent, revision
from tests.startup.plan.simulation import Behaviour, Simulation

MACHINES = ("m", "n")
NO_RETRY = RestartPolicy(max_attempts=0, retry_failed_after_s=0)


@st.composite
def fleets(draw: st.DrawFn) -> list[AgentSpec]:
    """Up to 14 agents; each needs, or would like, some of those before it."""
    count = draw(st.integers(1, 14))
    names = [f"{draw(st.sampled_from(MACHINES))}/a{number}" for number in range(count)]
    specs = []
    for number, name in enumerate(names):
        below = draw(st.lists(st.sampled_from(names[:number]), unique=True, max_size=4)) if number else []
        cut = draw(st.integers(0, len(below)))
        specs.append(agent(name, *below[:cut], optional=tuple(below[cut:]), restart=NO_RETRY))
    return draw(st.permutations(specs))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), st.data())
def test_everything_gets_ready_after_its_dependencies_once_and_goes_in_reverse(
    specs: list[AgentSpec], data: st.DataObject
) -> None:
    sim = Simulation(*MACHINES)
    for spec in specs:
        sim.behaviours[spec.id] = Behaviour(
            ready_after_s=data.draw(st.sampled_from([0.01, 0.1, 1.0])), ignores_sigterm=data.draw(st.booleans())
        )
    sim.desire(revision(*specs))
    sim.run(60.0)
    assert {sim.phase(spec.id) for spec in specs} == {Phase.READY}  # the simulation checks the order itself
    assert all(len(times) == 1 for times in sim.forks.values())
    sim.desire(revision(*specs, number=2, down=True))
    sim.run(300.0)
    assert not sim.processes
    assert all(machine.finished for machine in sim.machines.values())
    assert all(len(times) == 1 for times in sim.forks.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), st.data())
def test_a_failure_skips_exactly_those_who_need_it_and_they_come_when_it_is_mended(
    specs: list[AgentSpec], data: st.DataObject
) -> None:
    broken = data.draw(st.sampled_from([spec.id for spec in specs]))
    sim = Simulation(*MACHINES)
    sim.behaviours[broken] = Behaviour(fails=1)
    sim.desire(revision(*specs))
    sim.run(60.0)
    skipped = {broken}
    for _ in specs:
        skipped |= {s.id for s in specs if any(d.required and set(d.agents) & skipped for d in s.dependencies)}
    skipped -= {broken}
    assert sim.phase(broken) is Phase.FAILED
    assert {spec.id for spec in specs if sim.phase(spec.id) is Phase.SKIPPED} == skipped
    assert {sim.machines[id.machine].rows[id].because for id in skipped} <= {str(broken)}
    assert {sim.phase(s.id) for s in specs if s.id not in skipped | {broken}} <= {Phase.READY}
    sim.machines[broken.machine].core.retry(sim.now_s)
    sim.settle()
    sim.run(60.0)
    assert {sim.phase(spec.id) for spec in specs} == {Phase.READY}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), st.data())
def test_crashes_stops_and_ups_in_any_order_converge(specs: list[AgentSpec], data: st.DataObject) -> None:
    sim = Simulation(*MACHINES)
    generous = [agent_with_budget(spec) for spec in specs]
    number = 1
    sim.desire(revision(*generous))
    for _ in range(data.draw(st.integers(1, 8))):
        sim.run(data.draw(st.sampled_from([0.0, 0.03, 0.12, 1.0])))
        victim = data.draw(st.sampled_from(generous)).id
        match data.draw(st.sampled_from(["crash", "stop", "down", "restart"])):
            case "crash":
                sim.exit(victim, -9)
                sim.settle()
            case "restart":
                sim.machines[victim.machine].core.restart([victim], sim.now_s)
                sim.settle()
            case "stop":
                number += 1
                sim.desire(revision(*generous, number=number, stopped=(str(victim),)))
            case "down":
                number += 1
                sim.desire(revision(*generous, number=number, down=True))
    sim.desire(revision(*generous, number=number + 1))
    sim.run(120.0)
    assert {sim.phase(spec.id) for spec in generous} == {Phase.READY}
    assert set(sim.processes) == {spec.id for spec in generous}


def agent_with_budget(spec: AgentSpec) -> AgentSpec:
    return replace(spec, restart=RestartPolicy(max_attempts=1000))
