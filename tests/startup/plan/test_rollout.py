"""A revision that is rolled out: so many at a time and no more, in order, and back again when one does not come up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.names import AgentId
from startup.plan.phase import ALIVE, Phase
from startup.plan.revision import Revision
from startup.plan.rollback import rolled_back
from startup.spec.fleet import AgentSpec, ProgramTarget, RestartPolicy
from tests.startup.plan.builders import agent, aid, revision
from tests.startup.plan.simulation import Behaviour, Simulation
from tests.startup.plan.test_reconcile_properties import MACHINES, fleets

NO_RETRY = RestartPolicy(max_attempts=0, retry_failed_after_s=0)


def running(*specs: AgentSpec, machines: tuple[str, ...] = ("m",)) -> tuple[Simulation, Revision]:
    sim, first = Simulation(*machines), revision(*specs)
    sim.desire(first)
    sim.run(60.0)
    return sim, first


def changed(spec: AgentSpec, value: int = 2, **keys: Any) -> AgentSpec:
    return replace(spec, config={"v": value}, **keys)


def serves(sim: Simulation, id: AgentId) -> object:
    """The config of the one process of it that takes calls."""
    p = sim.machines[id.machine].core.processes[id]
    assert p.phase is Phase.READY
    assert len(sim.of(id)) == 1
    return p.spec.config.get("v")


def under_way(sim: Simulation, served: set[AgentId]) -> set[AgentId]:
    """Those that are being replaced: a second process is there, or the only one is not ready."""
    return {
        id for id in served
        if len(sim.of(id)) > 1 or sim.phase(id) is not Phase.READY
    }  # fmt: skip


def test_one_after_the_other_dependencies_first() -> None:
    specs = [agent("C", "B"), agent("B", "A"), agent("A"), agent("X")]
    sim, first = running(*specs)
    sim.apply(revision(*map(changed, specs), number=2), first)
    most: list[int] = []
    sim.watch = lambda: most.append(len(under_way(sim, {spec.id for spec in specs})))
    sim.run(60.0)
    assert max(most) == 1
    assert sorted(specs, key=lambda spec: sim.forks[spec.id][-1]) == [specs[2], specs[3], specs[1], specs[0]]
    assert {serves(sim, spec.id) for spec in specs} == {2}
    assert {row.rolled for row in sim.machines["m"].rows.values()} == {2}


def test_what_does_not_change_is_not_touched() -> None:
    sim, first = running(agent("A"), agent("B"))
    before = sim.processes[aid("B")]
    sim.apply(revision(changed(agent("A")), agent("B"), number=2), first)
    sim.run(60.0)
    assert sim.processes[aid("B")] == before
    assert len(sim.forks[aid("B")]) == 1


def test_a_successor_that_fails_halts_the_rest_and_all_go_back() -> None:
    specs = [agent(name) for name in "ABCD"]
    sim, first = running(*specs)
    untouched = sim.processes[aid("D")]
    sim.behaviours[aid("C")] = Behaviour(fails=1)
    sim.apply(revision(*map(changed, specs), number=2), first)
    sim.run(60.0)
    (failure,) = sim.failures
    assert failure.id == aid("C")
    assert "exit 1" in failure.reason
    assert {serves(sim, spec.id) for spec in specs} == {None}
    assert sim.processes[aid("D")] == untouched
    assert [len(sim.forks[aid(name)]) for name in "ABCD"] == [3, 3, 2, 1]


EXCHANGES = [
    {"A": 2, "B": 1},
    {"A": 2, "B": 3, "C": 1},
    {"A": 2, "B": 3, "C": 4},  # no circle: the last one's port is free
]


def ports_in_use(sim: Simulation) -> list[int]:
    """Of the processes that there are."""
    specs = [sim.machines["m"].core.processes[life.id].spec for life in sim.lives.values()]
    return [port for spec in specs for port in spec.ports]


@pytest.mark.parametrize("rolls", [True, False], ids=["apply", "up"])
@pytest.mark.parametrize("new", EXCHANGES)
@pytest.mark.parametrize("needs", [(), ("A",), ("B",)])
def test_agents_exchange_their_ports_and_nobody_starts_on_one_that_is_not_free(
    rolls: bool, new: dict[str, int], needs: tuple[str, ...]
) -> None:
    ports = dict(zip(new, (1, 2, 3), strict=False))

    def specs(of: dict[str, int]) -> list[AgentSpec]:
        dependencies = {"A": ("B",) * ("A" in needs), "B": ("A",) * ("B" in needs)}
        return [replace(agent(name, *dependencies.get(name, ())), port=port) for name, port in of.items()]

    aside = agent("Aside")
    sim, first = running(*specs(ports), aside)

    def watch() -> None:
        used = ports_in_use(sim)
        assert len(used) == len(set(used))

    sim.watch = watch
    target = revision(*specs(new), aside, number=2)
    if rolls:
        sim.apply(target, first)
    else:
        sim.desire(target)
    sim.run(60.0)
    assert not sim.failures
    assert {name: sim.machines["m"].core.processes[aid(name)].spec.port for name in new} == new
    assert {sim.phase(aid(name)) for name in new} == {Phase.READY}
    assert [len(sim.forks[aid(name)]) for name in (*new, "Aside")] == [2] * len(new) + [1]


def test_an_exchange_of_ports_that_fails_is_taken_back() -> None:
    a, b = agent("A", port=1, restart=NO_RETRY), agent("B", port=2, restart=NO_RETRY)
    sim, first = running(a, b)
    sim.behaviours[aid("B")] = Behaviour(fails=1)
    sim.apply(revision(replace(a, port=2), replace(b, port=1), number=2), first)
    sim.run(60.0)
    assert [failure.id for failure in sim.failures] == [aid("B")]
    assert [sim.machines["m"].core.processes[aid(name)].spec.port for name in "AB"] == [1, 2]
    assert {sim.phase(aid(name)) for name in "AB"} == {Phase.READY}


def test_an_agent_that_takes_the_port_of_one_that_requires_it_is_not_waited_for() -> None:
    sim, first = running(replace(agent("B"), port=2))
    sim.apply(revision(replace(agent("New"), port=2), replace(agent("B", "New"), port=3), number=2), first)
    sim.run(60.0)
    assert {sim.phase(aid(name)) for name in ("New", "B")} == {Phase.READY}
    assert sim.forks[aid("New")][0] < sim.forks[aid("B")][-1]


def test_without_a_rollback_it_stays_halted() -> None:
    specs = [agent(name) for name in "ABC"]
    sim, first = running(*specs)
    sim.behaviours[aid("B")] = Behaviour(fails=1)
    sim.apply(revision(*map(changed, specs), number=2), first, on_failure="halt")
    sim.run(600.0)
    assert [serves(sim, aid(name)) for name in "ABC"] == [2, None, None]
    assert [sim.machines["m"].rows[aid(name)].rolled for name in "ABC"] == [2, -2, 0]


def test_an_agent_that_can_only_be_stopped_and_started_counts_until_it_is_ready_again() -> None:
    program = {"target": ProgramTarget(argv=("x",)), "sockets": "self", "restart": NO_RETRY}
    specs = [agent(name, **program) for name in "AB"]
    sim, first = running(*specs)
    most: list[int] = []
    sim.watch = lambda: most.append(len(under_way(sim, {spec.id for spec in specs})))
    sim.apply(revision(*map(changed, specs), number=2), first)
    sim.run(60.0)
    assert max(most) == 1
    assert [serves(sim, aid(name)) for name in "AB"] == [2, 2]
    sim.behaviours[aid("A")] = Behaviour(fails=1)
    sim.base = revision(*map(changed, specs), number=2)
    sim.apply(revision(*[changed(spec, 3) for spec in specs], number=3), sim.base)
    sim.run(60.0)
    assert sim.failures[0].id == aid("A")
    assert [serves(sim, aid(name)) for name in "AB"] == [2, 2]


def test_a_new_agent_that_is_required_and_fails_takes_everything_back() -> None:
    sim, first = running(agent("A"), agent("Old"))
    sim.behaviours[aid("New")] = Behaviour(fails=1)
    sim.apply(revision(changed(agent("A")), agent("New", restart=NO_RETRY), number=2), first)
    sim.run(60.0)
    assert sim.failures[0].id == aid("New")
    assert serves(sim, aid("A")) is None
    assert sim.phase(aid("Old")) is Phase.READY
    assert aid("New") not in sim.processes


def test_a_new_agent_that_is_optional_and_fails_halts_nothing() -> None:
    sim, first = running(agent("A"))
    sim.behaviours[aid("New")] = Behaviour(fails=1)
    sim.apply(revision(changed(agent("A")), agent("New", restart=NO_RETRY, required=False), number=2), first)
    sim.run(60.0)
    assert not sim.failures
    assert serves(sim, aid("A")) == 2
    assert sim.phase(aid("New")) is Phase.FAILED


def test_who_waits_for_a_new_agent_is_replaced_when_that_is_up_and_the_old_one_goes_last() -> None:
    sim, first = running(agent("Old", port=1), agent("A", "Old", port=2))
    sim.behaviours[aid("New")] = Behaviour(ready_after_s=5.0)
    left: list[bool] = []
    sim.watch = lambda: left.append(bool(sim.of(aid("Old"))))
    sim.apply(revision(agent("New", port=3), agent("A", "New", port=2, config={"v": 2}), number=2), first)
    sim.run(4.0)
    assert serves(sim, aid("A")) is None
    assert all(left)
    sim.run(60.0)
    assert serves(sim, aid("A")) == 2
    assert not sim.of(aid("Old"))


def test_a_new_agent_takes_the_port_of_one_that_goes() -> None:
    sim, first = running(agent("Old", port=1), agent("A", port=2))
    sim.apply(revision(agent("New", port=1), changed(agent("A", port=2)), number=2), first)
    sim.run(60.0)
    assert not sim.failures
    assert sim.phase(aid("New")) is Phase.READY
    assert len(sim.forks[aid("New")]) == 1


def test_what_happens_after_it_is_through_is_no_failure_of_the_rollout() -> None:
    specs = [agent(name, restart=NO_RETRY) for name in "AB"]
    sim, first = running(*specs)
    sim.behaviours[aid("B")] = Behaviour(ready_after_s=5.0)
    sim.apply(revision(*map(changed, specs), number=2), first)
    sim.run(1.0)
    sim.exit(aid("A"), 1)
    sim.settle()
    sim.run(60.0)
    assert not sim.failures
    assert sim.phase(aid("A")) is Phase.FAILED
    assert serves(sim, aid("B")) == 2


def test_what_an_operator_stops_on_the_way_holds_nothing_back_and_stays_stopped_when_it_is_rolled_back() -> None:
    specs = [agent(name) for name in "ABC"]
    sim, first = running(*specs)
    second = sim.apply(revision(*map(changed, specs), number=2), first)
    sim.behaviours[aid("C")] = Behaviour(fails=2)
    sim.run(0.02)
    sim.desire(replace(second, number=3, stopped=frozenset({aid("B")})))
    sim.run(60.0)
    assert sim.failures[0].id == aid("C")
    assert sim.phase(aid("B")) is Phase.STOPPED
    assert [serves(sim, aid(name)) for name in "AC"] == [None, None]


def test_a_node_that_starts_anew_goes_on_with_the_rollout() -> None:
    specs = [agent(name) for name in "ABC"]
    sim, first = running(*specs)
    second = sim.apply(revision(*map(changed, specs), number=2), first)
    sim.behaviours[aid("B")] = Behaviour(ready_after_s=0.5)
    sim.run(0.3)
    assert serves(sim, aid("A")) == 2
    sim.desire(second)  # as a node does that has just adopted what runs
    most: list[int] = []
    sim.watch = lambda: most.append(len(under_way(sim, {spec.id for spec in specs})))
    sim.run(60.0)
    assert max(most) == 1
    assert {serves(sim, spec.id) for spec in specs} == {2}


def test_a_machine_that_never_hears_of_the_revision_is_left_to_itself() -> None:
    specs = [agent("m/A"), agent("n/B")]
    sim, first = running(*specs, machines=MACHINES)
    second = sim.apply(revision(*map(changed, specs), number=2), first, after_s=1000.0)
    sim.run(2.0)
    assert serves(sim, aid("m/A")) is None
    sim.run(60.0)
    assert [serves(sim, spec.id) for spec in specs] == [2, None]
    assert second.rollout is not None


def test_a_failure_on_one_machine_stops_the_other() -> None:
    specs = [agent("m/A"), agent("n/B"), agent("m/C")]
    sim, first = running(*specs, machines=MACHINES)
    sim.behaviours[aid("n/B")] = Behaviour(fails=1)
    sim.apply(revision(*map(changed, specs), number=2), first, on_failure="halt", after_s=0.1)
    sim.run(600.0)
    assert [serves(sim, spec.id) for spec in specs] == [2, None, None]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), st.integers(1, 4), st.data())
def test_never_more_than_so_many_at_a_time_and_it_always_ends(
    specs: list[AgentSpec], most: int, data: st.DataObject
) -> None:
    sim, first = running(*specs, machines=MACHINES)
    touched = data.draw(st.lists(st.sampled_from(specs), unique_by=lambda spec: spec.id))
    for spec in specs:
        sim.behaviours[spec.id] = Behaviour(
            ready_after_s=data.draw(st.sampled_from([0.01, 0.1, 1.0])), parks=data.draw(st.booleans())
        )
    ids = {spec.id for spec in specs}
    seen: list[int] = []
    sim.watch = lambda: seen.append(len(under_way(sim, ids)))
    after = [changed(spec) if spec in touched else spec for spec in specs]
    sim.apply(revision(*after, number=2), first, max_unavailable=most, after_s=data.draw(st.sampled_from([0.0, 0.5])))
    sim.run(300.0)
    assert max(seen, default=0) <= most
    assert {spec.id: serves(sim, spec.id) for spec in after} == {spec.id: spec.config.get("v") for spec in after}
    assert all(len(sim.forks[spec.id]) == 1 + (spec in touched) for spec in specs)
    assert not sim.failures


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), st.integers(1, 4), st.data())
def test_one_that_fails_anywhere_leaves_the_fleet_as_it_was(
    specs: list[AgentSpec], most: int, data: st.DataObject
) -> None:
    sim, first = running(*specs, machines=MACHINES)
    broken = data.draw(st.sampled_from(specs)).id
    sim.behaviours[broken] = Behaviour(fails=1, parks=data.draw(st.booleans()))
    sim.apply(revision(*map(changed, specs), number=2), first, max_unavailable=most)
    sim.run(300.0)
    assert {failure.id for failure in sim.failures} == {broken}
    assert {serves(sim, spec.id) for spec in specs} == {None}
    assert {
        machine.core.desired.revision.number for machine in sim.machines.values() if machine.core.desired.revision
    } == {3}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fleets(), fleets(), st.data())
def test_from_any_fleet_to_any_other(before: list[AgentSpec], after: list[AgentSpec], data: st.DataObject) -> None:
    sim, first = running(*_with_ports(before), machines=MACHINES)
    target = [changed(spec) if data.draw(st.booleans()) else spec for spec in _with_ports(after)]
    sim.apply(revision(*target, number=2), first, max_unavailable=data.draw(st.integers(1, 3)))
    sim.run(300.0)
    assert not sim.failures
    assert {spec.id: serves(sim, spec.id) for spec in target} == {spec.id: spec.config.get("v") for spec in target}
    assert set(sim.processes) == {spec.id for spec in target}


def _with_ports(specs: list[AgentSpec]) -> list[AgentSpec]:
    """Each name its own, on either machine."""
    return [replace(spec, port=7000 + int(spec.name[1:])) for spec in specs]


def test_a_revision_that_undoes_another_is_the_same_on_every_machine() -> None:
    base = revision(agent("A"), agent("B"), stopped=("B",), number=4)
    sim = Simulation()
    sim.base = base
    bad = sim.apply(revision(changed(agent("A")), number=5), base)
    back = rolled_back(bad, base, 5.0)
    assert back.time_s == 5.0
    assert (back.number, back.digest()) == (6, base.digest())
    assert back.rollout is not None
    assert (back.rollout.base, back.rollout.on_failure) == (5, "go on")
    assert Revision.from_wire(back.to_wire()) == back


@pytest.mark.parametrize("phase", sorted(ALIVE - {Phase.READY}))
def test_who_did_not_serve_is_not_waited_for_in_line(phase: Phase) -> None:
    sim, first = running(agent("B"))
    sim.behaviours[aid("A")] = Behaviour(ready_after_s=None)
    second = revision(agent("A", start_timeout_s=5.0, restart=NO_RETRY), agent("B"), number=2)
    sim.desire(second)
    core = sim.machines["m"].core
    core.processes[aid("A")] = replace(core.processes[aid("A")], phase=phase)
    sim.behaviours[aid("A")] = Behaviour()
    sim.apply(revision(changed(agent("A")), changed(agent("B")), number=3), second)
    sim.run(1.0)
    assert serves(sim, aid("B")) == 2
    assert first.number == 1
