"""When agents start, wait, are skipped, degrade and stop: whole clusters in virtual time."""

from __future__ import annotations

from dataclasses import replace

from agentkit.names import Incarnation
from startup.plan.actions import Abort, CloseListeners, Fork, OpenListeners, Terminate
from startup.plan.phase import Health, Phase
from startup.plan.rows import Place, row_of
from startup.spec.fleet import ProgramTarget, RestartPolicy
from tests.startup.plan.builders import agent, aid, revision
from tests.startup.plan.simulation import Behaviour, Simulation

NO_RETRY = RestartPolicy(max_attempts=0, retry_failed_after_s=0)


def row(sim: Simulation, text: str):  # type: ignore[no-untyped-def]
    return sim.machines[aid(text).machine].rows[aid(text)]


def test_an_agent_starts_the_moment_its_own_dependencies_are_ready() -> None:
    sim = Simulation()
    sim.behaviours[aid("Slow")] = Behaviour(ready_after_s=5.0)
    sim.desire(revision(agent("A"), agent("Slow"), agent("B", "A"), agent("C", "Slow", "B")))
    assert row(sim, "C").waiting_for == ("Slow", "B")
    sim.run(0.3)
    assert sim.phases() == {"A": "ready", "B": "ready", "C": "waiting", "Slow": "forked"}
    assert row(sim, "C").waiting_for == ("Slow",)
    sim.run(5.0)
    assert sim.phase(aid("C")) is Phase.READY
    assert row(sim, "C").slowest_dependency == "m/Slow"


def test_ports_are_held_from_the_moment_an_agent_is_wanted() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A"), agent("B", "A")))
    assert [action for action in sim.machines["m"].performed if isinstance(action, OpenListeners)] == [
        OpenListeners(aid("A")),
        OpenListeners(aid("B")),
    ]


def test_the_agent_with_the_longest_chain_behind_it_is_forked_first() -> None:
    sim = Simulation()
    sim.desire(revision(agent("Leaf"), agent("Root"), agent("Mid", "Root"), agent("Top", "Mid")))
    forks = [action for action in sim.machines["m"].performed if isinstance(action, Fork)]
    assert forks == [Fork(aid("Root")), Fork(aid("Leaf"))]


def test_a_dependency_on_another_machine_is_waited_for() -> None:
    sim = Simulation("m", "n")
    sim.desire(revision(agent("A", "n/B"), agent("n/B")))
    assert sim.phase(aid("A")) is Phase.WAITING
    sim.run(1.0)
    assert sim.phase(aid("A")) is Phase.READY


def test_any_one_replica_fulfils_a_dependency() -> None:
    sim = Simulation()
    user = agent("User", "A")
    both = replace(user.dependencies[0], agents=(aid("A"), aid("B")))
    sim.behaviours[aid("A")] = Behaviour(ready_after_s=None)
    sim.desire(revision(agent("A"), agent("B"), replace(user, dependencies=(both,))))
    sim.run(1.0)
    assert sim.phases() == {"A": "forked", "B": "ready", "User": "ready"}


def test_started_and_completed_conditions_mean_what_they_say() -> None:
    sim = Simulation()
    sim.behaviours[aid("Slow")] = Behaviour(ready_after_s=9.0)
    sim.desire(
        revision(agent("Slow"), agent("Task", kind="task"), agent("S", "Slow:started"), agent("T", "Task:completed"))
    )
    sim.run(1.0)
    assert sim.phases() == {"S": "ready", "Slow": "forked", "T": "waiting", "Task": "ready"}
    sim.exit(aid("Task"), 0)
    sim.settle()
    sim.run(1.0)
    assert [sim.phase(aid("Task")), sim.phase(aid("T"))] == [Phase.COMPLETED, Phase.READY]


def test_dependants_of_a_failed_agent_are_skipped_with_the_root_cause_and_start_when_it_is_gone() -> None:
    sim = Simulation()
    sim.behaviours[aid("A")] = Behaviour(fails=1)
    sim.desire(revision(agent("A", restart=NO_RETRY), agent("B", "A"), agent("C", "B"), agent("D")))
    sim.run(1.0)
    assert sim.phases() == {"A": "failed", "B": "skipped", "C": "skipped", "D": "ready"}
    assert (row(sim, "C").because, row(sim, "C").reason) == ("m/A", "A failed: exit 1")
    assert sim.machines["m"].core.retry(sim.now_s) == [aid("A")]
    sim.settle()
    assert sim.phases()["C"] == "waiting"
    sim.run(1.0)
    assert set(sim.phases().values()) == {"ready"}


def test_an_optional_dependency_is_waited_for_while_it_comes_up_but_not_after_it_failed() -> None:
    sim = Simulation()
    sim.behaviours[aid("Slow")] = Behaviour(ready_after_s=2.0)
    sim.behaviours[aid("Bad")] = Behaviour(fails=9)
    specs = [
        agent("Slow"),
        agent("Bad", restart=NO_RETRY),
        agent("A", optional=("Slow",)),
        agent("B", optional=("Bad",)),
    ]
    sim.desire(revision(*specs))
    sim.run(0.5)
    assert sim.phases() == {"A": "waiting", "B": "ready", "Bad": "failed", "Slow": "forked"}
    sim.run(2.0)
    assert sim.phase(aid("A")) is Phase.READY


def test_an_optional_dependency_that_never_gets_ready_is_not_waited_for_beyond_its_start_timeout() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A", optional=("B",)), agent("B", externals=("Redis",), start_timeout_s=5.0)))
    sim.run(4.9)
    assert sim.phase(aid("A")) is Phase.WAITING
    sim.run(0.3)
    assert sim.phases() == {"A": "ready", "B": "waiting"}


def test_an_external_is_probed_once_for_all_who_wait_for_it() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A", externals=("Redis",)), agent("B", externals=("Redis",))))
    core = sim.machines["m"].core
    assert row(sim, "A").waiting_for == ("Redis",)
    assert len([a for a in sim.machines["m"].performed if type(a).__name__ == "ProbeExternal"]) == 1
    assert core.waits_for_external("Redis")
    core.external_answered("Redis", sim.now_s)
    sim.settle()
    sim.run(1.0)
    assert set(sim.phases().values()) == {"ready"}
    assert not core.waits_for_external("Redis")


def test_a_phase_is_a_barrier_that_only_required_agents_hold() -> None:
    sim = Simulation("m", "n")
    sim.behaviours[aid("n/A")] = Behaviour(ready_after_s=2.0)
    sim.behaviours[aid("Extra")] = Behaviour(ready_after_s=None)
    specs = [
        agent("n/A", group="core"),
        agent("Extra", group="core", required=False),
        agent("B", group="late"),
        agent("C"),
    ]
    sim.desire(revision(*specs, phases=(("core",), ("late",))))
    sim.run(1.0)
    assert [sim.phase(aid("B")), sim.phase(aid("C"))] == [Phase.WAITING, Phase.READY]
    assert row(sim, "B").waiting_for == ("phase core",)
    sim.run(2.0)
    assert sim.phase(aid("B")) is Phase.READY


def test_a_failed_agent_holds_the_next_phase_back_by_name() -> None:
    sim = Simulation()
    sim.behaviours[aid("A")] = Behaviour(fails=1)
    specs = [agent("A", group="core", restart=NO_RETRY), agent("B", group="late")]
    sim.desire(revision(*specs, phases=(("core",), ("late",))))
    sim.run(1.0)
    assert (row(sim, "B").phase, row(sim, "B").because) == (Phase.SKIPPED, "m/A")
    sim.machines["m"].core.retry(sim.now_s)
    sim.settle()
    sim.run(1.0)
    assert sim.phase(aid("B")) is Phase.READY


def test_down_stops_in_reverse_order_over_all_machines_and_finishes() -> None:
    sim = Simulation("m", "n")
    specs = [agent("A"), agent("n/B", "A"), agent("C", "n/B"), agent("n/D", "C", optional=("A",))]
    sim.desire(revision(*specs))
    sim.run(2.0)
    sim.desire(revision(*specs, number=2, down=True))
    assert [sim.phase(aid(t)).value for t in ("A", "n/B", "C", "n/D")] == ["ready", "ready", "ready", "stopping"]
    sim.run(2.0)
    assert set(sim.phases().values()) == {"stopped"}
    assert all(machine.finished for machine in sim.machines.values())
    assert not sim.processes


def test_down_while_the_fleet_starts_leaves_nothing_and_starts_nothing_more() -> None:
    sim = Simulation()
    specs = [agent("A"), agent("B", "A"), agent("C", "B")]
    sim.desire(revision(*specs))
    sim.run(0.15)
    sim.desire(revision(*specs, number=2, down=True))
    sim.run(5.0)
    assert set(sim.phases().values()) == {"stopped"}
    assert aid("C") not in sim.forks
    assert sim.machines["m"].finished


def test_up_again_before_down_is_through_brings_everything_back() -> None:
    sim = Simulation()
    specs = [agent("A"), agent("B", "A")]
    sim.desire(revision(*specs))
    sim.run(1.0)
    sim.desire(revision(*specs, number=2, down=True))
    sim.run(0.01)
    sim.desire(revision(*specs, number=3))
    sim.run(3.0)
    assert set(sim.phases().values()) == {"ready"}
    assert [len(sim.forks[aid(t)]) for t in "AB"] == [1, 2]


def test_dependants_of_an_agent_stopped_by_an_operator_stay_and_say_why_they_are_degraded() -> None:
    sim = Simulation("m", "n")
    specs = [agent("A"), agent("n/B", "A"), agent("C", "n/B")]
    sim.desire(revision(*specs))
    sim.run(1.0)
    sim.desire(revision(*specs, number=2, stopped=("A",)))
    sim.run(1.0)
    assert sim.phases() == {"A": "stopped", "C": "ready", "B": "ready"}
    assert (row(sim, "n/B").health, row(sim, "n/B").reason) == (Health.DEGRADED, "A stopped by operator")
    assert row(sim, "C").health is Health.OK
    assert row(sim, "A").reason == "stopped by operator"
    sim.desire(revision(*specs, number=3))
    sim.run(1.0)
    assert (row(sim, "n/B").health, row(sim, "A").phase) == (Health.OK, Phase.READY)


def test_an_agent_that_needs_a_stopped_one_is_skipped_because_of_it() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A"), agent("B", "A"), stopped=("A",)))
    assert (row(sim, "B").phase, row(sim, "B").because, row(sim, "B").reason) == (
        Phase.SKIPPED,
        "m/A",
        "A stopped by operator",
    )


def test_disabled_agents_and_broken_optional_ones_never_start() -> None:
    sim = Simulation()
    sim.desire(revision(agent("Off", enabled=False), agent("Broken", problem="a.py does not compile"), agent("C")))
    sim.run(1.0)
    assert sim.phases() == {"Broken": "skipped", "C": "ready", "Off": "stopped"}
    assert (row(sim, "Broken").reason, row(sim, "Off").reason) == ("a.py does not compile", "disabled")
    sim.desire(revision(agent("Off"), agent("Broken"), agent("C"), number=2))
    sim.run(1.0)
    assert set(sim.phases().values()) == {"ready"}


def test_a_changed_agent_gets_another_process_and_unchanged_pids_stay() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A"), agent("B", "A"), agent("C")))
    sim.run(1.0)
    before = dict(sim.processes)
    sim.desire(revision(agent("A", config={"n": 2}), agent("B", "A", required=False), agent("C", "A"), number=2))
    sim.run(1.0)
    assert set(sim.phases().values()) == {"ready"}
    assert sim.processes[aid("A")] != before[aid("A")]
    assert [sim.processes[aid(t)] for t in "BC"] == [before[aid(t)] for t in "BC"]


def test_a_removed_agent_is_stopped_after_those_removed_with_it_that_need_it_and_leaves_the_table() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A"), agent("B", "A"), agent("C")))
    sim.run(1.0)
    sim.desire(revision(agent("C"), number=2))
    assert [sim.phase(aid("A")), sim.phase(aid("B"))] == [Phase.READY, Phase.STOPPING]
    sim.run(1.0)
    assert sim.phases() == {"A": "stopped", "B": "stopped", "C": "ready"}
    assert list(sim.machines["m"].core.processes) == [aid("C")]
    assert CloseListeners(aid("A")) in sim.machines["m"].performed


def test_a_failed_agent_whose_spec_is_mended_is_tried_again() -> None:
    sim = Simulation()
    sim.behaviours[aid("A")] = Behaviour(fails=1)
    sim.desire(revision(agent("A", restart=NO_RETRY)))
    sim.run(1.0)
    sim.desire(revision(agent("A", restart=NO_RETRY), number=2))
    sim.run(1.0)
    assert sim.phase(aid("A")) is Phase.FAILED
    sim.desire(revision(agent("A", restart=NO_RETRY, config={"fixed": True}), number=3))
    sim.run(1.0)
    assert sim.phase(aid("A")) is Phase.READY


def test_a_restarting_agent_waits_for_its_required_dependencies() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A"), agent("B", "A")))
    sim.run(1.0)
    sim.behaviours[aid("A")] = Behaviour(ready_after_s=3.0)
    sim.exit(aid("A"), -9)
    sim.exit(aid("B"), -9)
    sim.settle()
    sim.run(1.0)
    assert sim.phases() == {"A": "forked", "B": "waiting"}
    sim.run(3.0)
    assert sim.phases() == {"A": "ready", "B": "ready"}


def test_an_operators_restart_touches_only_what_was_named_and_spends_no_budget() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A"), agent("B", "A"), agent("Off"), stopped=("Off",)))
    sim.run(1.0)
    before = dict(sim.processes)
    assert sim.machines["m"].core.restart([aid("A"), aid("Off"), aid("nobody")], sim.now_s) == [aid("A")]
    sim.settle()
    sim.run(1.0)
    assert sim.processes[aid("B")] == before[aid("B")]
    assert sim.processes[aid("A")] != before[aid("A")]
    assert (row(sim, "A").restarts, row(sim, "A").phase) == (0, Phase.READY)


def test_an_unreachable_machine_degrades_those_who_run_and_skips_those_who_wait_until_it_is_back() -> None:
    sim = Simulation("m", "n")
    specs = [agent("n/B"), agent("A", "n/B"), agent("C", "n/B")]
    sim.desire(revision(*specs, stopped=("C",)))
    sim.run(1.0)
    core = sim.machines["m"].core
    core.see_unreachable(frozenset({"n"}), sim.now_s)
    sim.desire(revision(*specs, number=2))
    assert row(sim, "A").health is Health.DEGRADED
    assert row(sim, "A").reason == "B unreachable: its machine n does not answer"
    assert (row(sim, "C").phase, row(sim, "C").because) == (Phase.SKIPPED, "n/B")
    core.see_unreachable(frozenset(), sim.now_s)
    sim.settle()
    sim.run(1.0)
    assert (row(sim, "A").health, row(sim, "C").phase) == (Health.OK, Phase.READY)


def test_down_does_not_wait_for_an_unreachable_machines_dependants() -> None:
    sim = Simulation("m", "n")
    specs = [agent("A"), agent("n/B", "A")]
    sim.desire(revision(*specs))
    sim.run(1.0)
    core = sim.machines["m"].core
    core.see_unreachable(frozenset({"n"}), sim.now_s)
    life = sim.processes[aid("A")]
    core.desire(revision(*specs, number=2, down=True), sim.now_s)
    assert [a for a in core.step(sim.now_s).actions if isinstance(a, Terminate)] == [Terminate(aid("A"), life)]


def test_a_node_that_leaves_stops_its_own_agents_and_nobody_elses() -> None:
    sim = Simulation("m", "n")
    specs = [agent("A"), agent("B", "A"), agent("n/C", "A")]
    sim.desire(revision(*specs))
    sim.run(1.0)
    sim.machines["m"].core.leave()
    sim.settle()
    assert [sim.phase(aid("A")), sim.phase(aid("B"))] == [Phase.READY, Phase.STOPPING]
    sim.run(1.0)
    assert sim.phases() == {"A": "stopped", "B": "stopped", "C": "ready"}
    assert sim.machines["m"].finished
    assert not sim.machines["n"].finished


def test_an_event_of_an_earlier_incarnation_is_ignored() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A")))
    old = sim.processes[aid("A")]
    sim.exit(aid("A"), 1)
    sim.settle()
    sim.ready(aid("A"), old)
    sim.settle()
    assert sim.phase(aid("A")) is Phase.FORKED


def test_a_row_shows_wall_clock_times_and_where_to_connect() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A", health_port=7001)))
    sim.run(1.0)
    place = Place(host="10.0.0.1", wall_offset_s=500.0, logs="/logs")
    shown = row_of(sim.machines["m"].core.processes[aid("A")], place, 7)
    assert shown.endpoints == {"inbox-local": "tcp://127.0.0.1:7000", "inbox": "tcp://10.0.0.1:7000"}
    assert (shown.health_url, shown.log, shown.version) == ("http://10.0.0.1:7001/health", "/logs/A.log", 7)
    assert shown.stamps.ready_s == 1500.1


def test_the_first_watchdog_message_of_a_program_asks_for_a_step_and_later_ones_do_not() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A", target=ProgramTarget(argv=("x",)), watchdog_s=30.0)))
    sim.run(1.0)
    core, now_s = sim.machines["m"].core, sim.now_s
    life = sim.processes[aid("A")]
    assert core.step(now_s).wake_at_s is None or core.step(now_s).wake_at_s > now_s + 30  # type: ignore[operator]
    assert core.fed(aid("A"), life, now_s)
    assert core.step(now_s).wake_at_s == now_s + 30.0
    assert not core.fed(aid("A"), life, now_s + 10)
    assert not core.fed(aid("A"), Incarnation(99), now_s + 10)
    assert core.step(now_s + 30).actions == []
    assert core.step(now_s + 40).actions == [Abort(aid("A"), life)]


def test_a_start_that_went_well_leaves_no_timer_behind() -> None:
    sim = Simulation()
    sim.desire(revision(agent("A"), agent("B", "A")))
    sim.run(1.0)
    assert sim.machines["m"].core.step(sim.now_s).wake_at_s is None
