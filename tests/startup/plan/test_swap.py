"""Two processes of one slot: overlap and handover, what fails on the way, and that nothing ever runs twice or not at all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit.names import Incarnation
from startup.plan import ending, swap, transitions
from startup.plan.actions import Abort, Fork, ForkBeside, Release, Terminate
from startup.plan.phase import Phase
from startup.plan.process import Process
from startup.plan.row import AgentRow
from startup.spec.fleet import AgentSpec, ProgramTarget, ReadyWhen, RestartPolicy
from tests.startup.plan.builders import agent, aid, revision
from tests.startup.plan.simulation import Behaviour, Simulation
from tests.startup.plan.test_process import running

A, B = aid("A"), aid("B")
RANDOM = Random(3)


def up(*specs: AgentSpec, **behaviours: Behaviour) -> Simulation:
    """A fleet that is ready. Then every process does what `behaviours` say."""
    sim = Simulation()
    sim.desire(revision(*specs))
    sim.run(10.0)
    assert set(sim.phases().values()) == {"ready"}
    sim.behaviours.update({aid(name): behaviour for name, behaviour in behaviours.items()})
    sim.machines["m"].performed.clear()
    return sim


def restart(sim: Simulation, *names: str) -> None:
    assert sim.machines["m"].core.restart(list(map(aid, names)), sim.now_s) == list(map(aid, names))
    sim.settle()


def row(sim: Simulation, name: str = "A") -> AgentRow:
    return sim.machines["m"].rows[aid(name)]


def performed(sim: Simulation, *kinds: type) -> list[object]:
    return [action for action in sim.machines["m"].performed if isinstance(action, kinds)]


ROLL = (Fork, ForkBeside, Terminate, Release, Abort)


def test_in_an_overlap_the_old_one_goes_when_the_new_one_serves_and_only_then_the_gate_opens() -> None:
    sim = up(agent("A"))
    old = sim.processes[A]
    restart(sim, "A")
    (new,) = {life.incarnation for life in sim.of(A)} - {old}
    assert (row(sim).phase, row(sim).incarnation) == (Phase.READY, old)
    assert row(sim).roll == f"its successor (pid {int(new) + 100}) is forked"
    sim.run(0.11)
    assert (row(sim).phase, row(sim).incarnation, sim.lives[new].is_gated) == (Phase.READY, new, True)
    assert row(sim).roll == f"its predecessor (pid {int(old) + 100}) drains"
    sim.run(1.0)
    assert (row(sim).incarnation, row(sim).roll, sim.lives[new].is_gated) == (new, "", False)
    assert performed(sim, *ROLL) == [ForkBeside(A), Terminate(A, old, successor="serves"), Release(A, new)]
    assert (row(sim).restarts, row(sim).last_exit) == (0, "")


def test_in_a_handover_the_new_one_is_parked_before_the_old_one_is_told_and_starts_when_nothing_of_it_is_left() -> None:
    sim = up(agent("A"), A=Behaviour(parks=True))
    old = sim.processes[A]
    restart(sim, "A")
    assert not performed(sim, Terminate)
    sim.run(0.03)
    (new,) = {life.incarnation for life in sim.of(A)} - {old}
    assert (row(sim).phase, row(sim).incarnation) == (Phase.DRAINING, old)
    assert row(sim).roll == f"its successor (pid {int(new) + 100}) is parked"
    sim.run(0.06)
    assert (row(sim).phase, row(sim).incarnation) == (Phase.STARTING, new)
    sim.run(1.0)
    assert (row(sim).phase, row(sim).restarts, row(sim).roll) == (Phase.READY, 0, "")
    assert performed(sim, *ROLL) == [ForkBeside(A), Terminate(A, old, successor="waits"), Release(A, new)]


@pytest.mark.parametrize("behaviour", [Behaviour(fails=1), Behaviour(ready_after_s=None), Behaviour(parks=True)])
def test_a_successor_that_does_not_become_ready_leaves_the_old_one_alone_and_costs_no_budget(
    behaviour: Behaviour,
) -> None:
    sim = up(agent("A", start_timeout_s=5.0), A=behaviour)
    old = sim.processes[A]
    restart(sim, "A")
    if behaviour.parks:
        (parked,) = (life for life in sim.of(A) if life.is_gated)
        sim.exit(A, -9, parked.incarnation)
    sim.run(10.0)
    assert (row(sim).phase, row(sim).incarnation, row(sim).restarts, row(sim).roll) == (Phase.READY, old, 0, "")
    assert row(sim).roll_error.startswith(("exit 1", "not ready within 5 s", "signal SIGKILL"))
    assert [life.incarnation for life in sim.of(A)] == [old]
    assert not performed(sim, Terminate, Fork)
    assert sim.machines["m"].core.processes[A].failures == ()
    sim.behaviours.clear()
    restart(sim, "A")
    assert row(sim).roll_error == "", "a restart that is under way has not failed"
    sim.run(10.0)
    assert (row(sim).phase, row(sim).roll_error) == (Phase.READY, "")
    assert sim.processes[A] != old


def test_one_that_fails_after_its_gate_opened_has_failed_as_any_other() -> None:
    sim = up(agent("A", restart=RestartPolicy(max_attempts=1)), A=Behaviour(parks=True, fails=1))
    restart(sim, "A")
    sim.run(5.0)
    assert (row(sim).phase, row(sim).restarts) == (Phase.READY, 1)
    assert row(sim).last_error == "exit 1"


@pytest.mark.parametrize("parks", [False, True])
def test_the_old_ones_crash_hands_over_at_once_and_spends_no_budget(parks: bool) -> None:
    sim = up(agent("A"), A=Behaviour(parks=parks))
    restart(sim, "A")
    sim.exit(A, -11)
    sim.settle()
    (new,) = sim.of(A)
    assert (row(sim).incarnation, new.is_gated) == (new.incarnation, False)
    sim.run(1.0)
    assert (row(sim).phase, row(sim).restarts, row(sim).last_exit[:14]) == (Phase.READY, 0, "signal SIGSEGV")
    assert [life.incarnation for life in sim.of(A)] == [new.incarnation]


def test_the_new_ones_crash_while_the_old_one_drains_is_a_failure_and_waits_for_the_old_ones_end() -> None:
    sim = up(agent("A"), A=Behaviour(stops_after_s=3.0))
    old = sim.processes[A]
    restart(sim, "A")
    sim.run(0.2)
    sim.exit(A, -11)
    sim.settle()
    assert [life.incarnation for life in sim.of(A)] == [old]
    sim.run(10.0)
    assert (row(sim).phase, row(sim).restarts) == (Phase.READY, 1)
    assert row(sim).last_error.startswith("signal SIGSEGV")


@pytest.mark.parametrize("parks", [False, True])
@pytest.mark.parametrize("after_s", [0.0, 0.03, 0.12])
@pytest.mark.parametrize("down", [False, True])
def test_stop_and_down_in_the_middle_leave_nothing(parks: bool, after_s: float, down: bool) -> None:
    sim = up(agent("A"), A=Behaviour(parks=parks, ignores_sigterm=True))
    restart(sim, "A")
    sim.run(after_s)
    sim.desire(revision(agent("A"), number=2, down=down, stopped=() if down else ("A",)))
    sim.run(60.0)
    assert (row(sim).phase, sim.of(A), sim.machines["m"].finished) == (Phase.STOPPED, [], down)


def test_a_restart_in_the_middle_of_one_begins_a_process_that_is_newer_than_both_commands() -> None:
    for after_s in (0.0, 0.05, 0.12):
        for parks in (False, True):
            sim = up(agent("A"), A=Behaviour(parks=parks))
            restart(sim, "A")
            sim.run(after_s)
            there = {life.incarnation for life in sim.of(A)}
            restart(sim, "A")
            sim.run(5.0)
            assert (row(sim).phase, row(sim).restarts, row(sim).roll) == (Phase.READY, 0, "")
            assert sim.processes[A] not in there
            assert len(sim.of(A)) == 1


def test_of_several_the_dependency_is_replaced_first() -> None:
    sim = up(agent("A"), agent("B", "A"), agent("C", optional=("A",)))
    restart(sim, "A", "B", "C")
    assert performed(sim, ForkBeside) == [ForkBeside(A), ForkBeside(aid("C"))]
    assert row(sim, "B").roll == "to be replaced, after what it depends on"
    sim.run(0.11)
    assert performed(sim, ForkBeside)[2:] == [ForkBeside(B)]
    sim.run(1.0)
    assert set(sim.phases().values()) == {"ready"}


def test_a_changed_spec_is_rolled_out_on_the_same_ports_and_started_anew_on_others() -> None:
    sim = up(agent("A"), agent("B", "A"))
    sim.desire(revision(agent("A", config={"n": 2}), agent("B", "A"), number=2))
    sim.run(1.0)
    assert [type(action) for action in performed(sim, *ROLL)] == [ForkBeside, Terminate, Release]
    assert sim.machines["m"].core.processes[A].spec.config == {"n": 2}
    sim.machines["m"].performed.clear()
    sim.desire(revision(agent("A", config={"n": 2}, port=7001), agent("B", "A"), number=3))
    sim.run(1.0)
    assert [type(action) for action in performed(sim, *ROLL)] == [Terminate, Fork]


def test_a_spec_that_nobody_starts_with_is_tried_once_in_each_revision() -> None:
    sim = up(agent("A"), A=Behaviour(fails=1))
    old = sim.processes[A]
    changed = agent("A", config={"n": 2})
    sim.desire(revision(changed, number=2))
    sim.run(100.0)
    assert (row(sim).phase, row(sim).incarnation, row(sim).roll_error[:6]) == (Phase.READY, old, "exit 1")
    assert len(performed(sim, ForkBeside)) == 1
    sim.desire(revision(changed, number=3))
    sim.run(1.0)
    assert (row(sim).phase, row(sim).roll_error) == (Phase.READY, "")
    assert sim.processes[A] != old


def test_a_change_in_the_middle_sends_the_successor_away() -> None:
    sim = up(agent("A"))
    sim.desire(revision(agent("A", config={"n": 2}), number=2))
    sim.run(0.05)
    sim.desire(revision(agent("A", config={"n": 3}), number=3))
    sim.run(2.0)
    assert (row(sim).phase, row(sim).roll, len(sim.of(A))) == (Phase.READY, "", 1)
    assert sim.machines["m"].core.processes[A].spec.config == {"n": 3}


def test_programs_tasks_and_sockets_of_their_own_are_stopped_and_started() -> None:
    plain = agent("A")
    others = [
        replace(plain, target=ProgramTarget(argv=("x",))),
        replace(plain, kind="task"),
        replace(plain, sockets="self"),
        replace(plain, ready=ReadyWhen(tcp_port=7000)),
        replace(plain, health_port=7001),
    ]
    assert swap.rolls(plain, replace(plain, config={"n": 1}))
    assert not any(swap.rolls(plain, other) or swap.rolls(other, plain) for other in others)


def test_a_rule_replaces_within_the_restart_budget() -> None:
    sim = up(agent("A", restart=RestartPolicy(max_attempts=1)))
    core = sim.machines["m"].core
    assert core.restart_by_rule(A, "3 errors", sim.now_s)
    assert not core.restart_by_rule(A, "3 errors", sim.now_s), "it is under way"
    sim.settle()
    sim.run(1.0)
    assert (row(sim).phase, row(sim).restarts, row(sim).last_error) == (Phase.READY, 1, "3 errors")
    assert [type(action) for action in performed(sim, *ROLL)] == [ForkBeside, Terminate, Release]
    assert not core.restart_by_rule(A, "3 errors", sim.now_s), "its budget is used up"


@pytest.mark.parametrize("role", [swap.Role.COMES, swap.Role.GOES])
def test_a_new_node_ends_the_process_that_does_not_hold_the_slot(role: swap.Role) -> None:
    held = transitions.ready(running(), 1.0)
    other = replace(held, pid=4712, incarnation=Incarnation(12))
    p, actions = swap.adopted(held, other, role, 5.0)
    assert (p.incarnation, actions) == (9, [Terminate(A, Incarnation(12))])
    beside, _ = ending.exited(p.swap.beside, 0, 6.0, RANDOM)  # type: ignore[union-attr]
    p, actions = swap.settled(p, replace(p, swap=replace(p.swap, beside=beside)), [], 6.0)  # type: ignore[type-var]
    begun = p.swap.role if p.swap else None
    assert (begun, actions) == (
        (None, [Release(A, Incarnation(9))]) if role is swap.Role.GOES else (swap.Role.WAITS, [])
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_happens_in_any_order_nothing_runs_twice_and_a_failed_successor_never_leaves_nobody(
    data: st.DataObject,
) -> None:
    """The simulation itself refuses a second process without a gate, and a gate that opens beside another process."""
    quick = {"restart": RestartPolicy(max_attempts=1000, delay_s=0.1, max_delay_s=1.0), "shutdown_grace_s": 2.0}
    chain = [
        agent(name, *needs, start_timeout_s=3.0, **quick)
        for name, needs in (("A", ()), ("B", ("A",)), ("C", ("B",)))
    ]  # fmt: skip
    sim = up(*chain)
    core = sim.machines["m"].core
    number = 1
    for _ in range(data.draw(st.integers(1, 12))):
        victim = data.draw(st.sampled_from([A, B]))
        sim.behaviours[victim] = Behaviour(
            ready_after_s=data.draw(st.sampled_from([0.01, 0.1, 1.0, None])),
            fails=data.draw(st.sampled_from([0, 0, 1])),
            ignores_sigterm=data.draw(st.booleans()),
            stops_after_s=data.draw(st.sampled_from([0.01, 0.5])),
            parks=data.draw(st.booleans()),
        )
        serving = {life.incarnation for life in sim.of(victim) if life.takes_calls}
        deed = data.draw(
            st.sampled_from(["restart", "rule", "change", "stop", "crash", "crash beside", "down", "nothing"])
        )
        match deed:
            case "restart":
                core.restart([victim], sim.now_s)
            case "rule":
                core.restart_by_rule(victim, "why", sim.now_s)
            case "crash":
                sim.exit(victim, -9)
            case "crash beside":
                for life in sim.of(victim):
                    if life.incarnation != sim.processes[victim]:
                        sim.exit(victim, -9, life.incarnation)
            case "change" | "stop" | "down":
                number += 1
                config = {"n": number if deed == "change" else 0}
                specs = [replace(spec, config=config) if spec.id == victim else spec for spec in chain]
                stopped = (str(victim),) if deed == "stop" else ()
                sim.desire(revision(*specs, number=number, stopped=stopped, down=deed == "down"))
        sim.settle()
        if deed in ("restart", "rule", "change", "crash beside"):
            # none of these takes a process away by itself: whoever served does until another one does, or hands over
            assert serving <= {life.incarnation for life in sim.of(victim) if life.takes_calls} or _is_handed_over(
                sim, victim
            )
        sim.run(data.draw(st.sampled_from([0.0, 0.015, 0.03, 0.12, 1.0, 5.0])))
        for id in (A, B):
            assert len([life for life in sim.of(id) if not life.is_gated]) <= 1
            assert len(sim.of(id)) <= 2
    sim.behaviours.clear()
    sim.desire(revision(*chain, number=number + 1))
    sim.run(200.0)
    assert set(sim.phases().values()) == {"ready"}
    assert all(len(sim.of(spec.id)) == 1 and not sim.of(spec.id)[0].is_gated for spec in chain)
    assert not any(row(sim, name).roll for name in "ABC")


def _is_handed_over(sim: Simulation, id: object) -> bool:
    return any(life.is_parked or life.takes_calls for life in sim.of(id)) or sim.phase(id) is not Phase.READY  # type: ignore[arg-type]


def test_what_is_told_of_the_process_beside_never_touches_the_sockets_of_the_slot() -> None:
    p = swap.begun(transitions.ready(running(), 1.0), agent("A", restart=RestartPolicy(max_attempts=0)), 2.0)
    p, _ = swap.forked_beside(p, 2.0)
    p = swap.ordered(p, Incarnation(10))
    change = partial(ending.fork_failed, reason="no memory", now_s=2.1, random=RANDOM)
    assert isinstance(p.swap, swap.Swap)
    after, actions = swap.changed_beside(p, change(p.swap.beside))
    after, actions = swap.settled(p, after, actions, 2.1)
    assert isinstance(after, Process)
    assert (after.phase, after.swap, after.roll_error, actions) == (Phase.READY, None, "no memory", [])
