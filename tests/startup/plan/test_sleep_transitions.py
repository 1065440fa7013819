"""A slot that falls asleep, sleeps and wakes: what it is for others meanwhile, who wakes it, and how long it is kept awake after wakes
that were for nothing."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from agentkit.agent.orders import EXIT_ASLEEP
from agentkit.names import Incarnation
from startup.node.memory import after_boot, facts_of, process_of
from startup.plan import ending, sleep_transitions, transitions
from startup.plan.actions import CloseListeners, Fork, ForkBeside, LieDown, OpenListeners, Terminate
from startup.plan.phase import Phase
from startup.plan.process import Leaving, Process
from startup.plan.rows import Place, row_of
from startup.plan.sleep_record import AWAKE_S, CONNECTION, EVENT, OPERATOR, TIMER, Sleep
from startup.plan.sleep_transitions import Refusal, Wish
from startup.spec.fleet import AgentSpec, HibernatePolicy, ProgramTarget, ReadyWhen, RestartPolicy
from tests.startup.plan.builders import agent, aid, revision
from tests.startup.plan.simulation import Behaviour, Simulation
from tests.startup.plan.test_process import running

A, B = aid("A"), aid("B")
RANDOM = Random(5)
DEEP = HibernatePolicy(after_s=0.05, depth="deep")
WALL_S = 1e9


def up(*specs: AgentSpec) -> Simulation:
    sim = Simulation()
    sim.desire(revision(*specs))
    sim.run(10.0)
    assert set(sim.phases().values()) == {"ready"}
    sim.machines["m"].performed.clear()
    return sim


def asks(sim: Simulation, name: str = "A", **said: object) -> Refusal | None:
    core, id = sim.machines["m"].core, aid(name)
    refusal = core.sleep(id, core.processes[id].incarnation, Wish(**said), sim.now_s, WALL_S + sim.now_s)  # type: ignore[arg-type]
    sim.settle()
    return refusal


def lay_down(sim: Simulation, name: str = "A", **said: object) -> None:
    assert asks(sim, name, **said) is None
    sim.exit(aid(name), EXIT_ASLEEP)
    sim.settle()
    assert sim.phase(aid(name)) is Phase.HIBERNATED


def wake(sim: Simulation, name: str = "A", why: str = CONNECTION) -> bool:
    woken = sim.machines["m"].core.wake(aid(name), why, sim.now_s)
    sim.settle()
    return woken


def performed(sim: Simulation, *kinds: type) -> list[object]:
    return [action for action in sim.machines["m"].performed if isinstance(action, kinds)]


def process(sim: Simulation, name: str = "A") -> Process:
    return sim.machines["m"].core.processes[aid(name)]


def test_falling_asleep_is_ready_for_everybody_else_until_nothing_is_left_and_then_the_sockets_are_watched() -> None:
    sim = up(agent("A"), agent("B", "A"))
    assert asks(sim) is None
    assert process(sim).leaving is Leaving.SLEEP
    assert sim.phases() == {"A": "ready", "B": "ready"}
    p = transitions.leaves(process(sim), sim.now_s)
    assert (p.phase, ending.gone(p, sim.now_s).phase, ending.gone(p, sim.now_s).pid) == (Phase.READY, Phase.READY, None)
    sim.exit(A, EXIT_ASLEEP)
    sim.settle()
    assert sim.phases() == {"A": "hibernated", "B": "ready"}
    assert performed(sim, LieDown, CloseListeners, Fork) == [LieDown(A)]
    assert (process(sim).restarts, process(sim).failures, process(sim).last_exit) == (0, (), "")
    assert sim.machines["m"].rows[B].health.value == "ok"


def test_the_first_connection_forks_it_once_and_how_long_that_took_is_known() -> None:
    sim = up(agent("A"))
    lay_down(sim, memory_mb=9.5)
    assert sim.machines["m"].rows[A].sleep["given_back_mb"] == 9.5
    sim.run(100.0)
    assert sim.phase(A) is Phase.HIBERNATED
    assert wake(sim)
    assert not wake(sim)
    sim.run(1.0)
    assert (sim.phase(A), performed(sim, Fork)) == (Phase.READY, [Fork(A)])
    sleep = process(sim).sleep
    assert sleep is not None
    assert (sleep.wakes, sleep.why, sleep.since_wall_s) == (1, CONNECTION, None)
    assert sleep.took_s == pytest.approx(0.1)
    assert process(sim).restarts == 0


def test_a_crash_while_falling_asleep_is_a_crash_and_is_started_again_within_the_budget() -> None:
    sim = up(agent("A"))
    assert asks(sim) is None
    sim.exit(A, -11)
    sim.settle()
    sim.run(5.0)
    assert (sim.phase(A), process(sim).restarts, process(sim).last_exit[:14]) == (Phase.READY, 1, "falling asleep")


def test_an_exit_that_nobody_could_reap_is_a_sleep_when_it_was_falling_asleep_and_a_crash_else() -> None:
    p = transitions.ready(running(), 1.0)
    asleep = sleep_transitions.asks(p, Wish(), 1.0, WALL_S)
    assert isinstance(asleep, Process)
    assert ending.exited(asleep, None, 2.0, RANDOM)[0].phase is Phase.HIBERNATED
    assert ending.exited(p, None, 2.0, RANDOM)[0].phase is Phase.WAITING
    assert ending.exited(p, EXIT_ASLEEP, 2.0, RANDOM)[0].phase is Phase.HIBERNATED  # whatever this node had heard of it


def test_who_stays_awake_after_all_says_so_and_is_ready_as_before() -> None:
    sim = up(agent("A"))
    assert asks(sim, wake_in_s=5.0) is None
    sim.machines["m"].core.on(A, lambda p: sleep_transitions.stays_awake(p, "a call came"), sim.now_s)
    sim.settle()
    sim.run(60.0)
    assert (sim.phase(A), process(sim).leaving, sim.machines["m"].rows[A].sleep["kept_by"]) == (
        Phase.READY,
        Leaving.NO,
        "a call came",
    )


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (agent("A", kind="task"), "it is a task"),
        (agent("A", sockets="self"), "binds its own port"),
        (agent("A", target=ProgramTarget(argv=("x",)), ready=ReadyWhen(tcp_port=1)), "a program"),
    ],
)
def test_what_nobody_could_wake_does_not_sleep(spec: AgentSpec, why: str) -> None:
    p = replace(transitions.ready(running(), 1.0), spec=spec)
    refusal = sleep_transitions.asks(p, Wish(), 2.0, WALL_S)
    assert isinstance(refusal, Refusal)
    assert why in refusal.why
    assert refusal.retry_s is None


def test_nobody_falls_asleep_while_it_starts_stops_or_is_replaced() -> None:
    p = running()
    assert isinstance(sleep_transitions.asks(p, Wish(), 1.0, WALL_S), Refusal)
    ready = transitions.ready(p, 1.0)
    assert isinstance(
        sleep_transitions.asks(transitions.stop(ready, 2.0, Leaving.STOP)[0], Wish(), 2.0, WALL_S), Refusal
    )
    sim = up(agent("A"))
    sim.machines["m"].core.restart([A], sim.now_s)
    sim.settle()
    assert asks(sim) == Refusal("another process takes its place", 1.0)
    assert sim.machines["m"].core.sleep(A, Incarnation(999), Wish(), sim.now_s, WALL_S) is not None


def test_wakes_without_a_call_double_the_time_for_which_it_has_to_stay_awake_and_a_call_forgives_them() -> None:
    sim = up(agent("A", hibernate=HibernatePolicy(after_s=1.0, depth="deep")))
    lay_down(sim, calls=3)
    kept_s = []
    for _ in range(5):
        assert wake(sim)
        sim.run(0.15)
        refusal = asks(sim)
        assert refusal is not None
        assert refusal.retry_s is not None
        kept_s.append(round(refusal.retry_s + 0.05, 3))
        sim.run(refusal.retry_s)
        lay_down(sim)
    assert kept_s == [2.0, 4.0, 8.0, 16.0, 32.0]
    assert wake(sim)
    sim.run(0.15)
    lay_down(sim, calls=1)
    assert wake(sim)
    sim.run(0.15)
    refusal = asks(sim)
    assert refusal is not None
    assert refusal.retry_s == pytest.approx(2.0, abs=0.1)
    assert asks(sim, is_asked=True) is None  # an operator knows better


def test_no_number_of_useless_wakes_keeps_it_awake_for_ever() -> None:
    sleep = Sleep(useless=10**6, why=CONNECTION, woken_s=1.0)
    assert sleep.awake_for_s(300.0, 0) == AWAKE_S[1]
    assert Sleep(useless=3, why=TIMER, woken_s=1.0).awake_for_s(300.0, 0) == 0.0
    assert Sleep(useless=3, why=OPERATOR, woken_s=1.0).awake_for_s(300.0, 0) == 0.0


def test_events_that_wake_it_before_it_has_slept_as_long_double_the_time_until_a_sleep_lasts() -> None:
    sim = up(agent("A", hibernate=HibernatePolicy(after_s=1.0, depth="deep")))
    lay_down(sim, calls=3, patterns=("news.>",))
    kept_s = []
    for _ in range(4):
        assert wake(sim, why=EVENT)
        sim.run(0.15)
        refusal = asks(sim, calls=9)  # calls don't forgive that
        assert refusal is not None
        assert refusal.retry_s is not None
        assert "events" in refusal.why
        kept_s.append(round(refusal.retry_s + 0.05, 3))
        sim.run(refusal.retry_s)
        lay_down(sim)
    assert kept_s == [2.0, 4.0, 8.0, 16.0]
    sim.run(17.0)
    assert wake(sim, why=EVENT)
    sim.run(0.15)
    assert asks(sim) is None


def test_what_it_listens_to_is_known_while_it_sleeps() -> None:
    sim = up(agent("A"))
    lay_down(sim, patterns=("news.>",))
    core = sim.machines["m"].core
    assert [p.sleep and p.sleep.patterns for p in core.processes.values() if p.id == A] == [("news.>",)]
    assert wake(sim)
    assert [p.sleep and p.sleep.patterns for p in core.processes.values() if p.id == A] == [()]


def test_who_is_being_woken_is_still_a_sleeper_for_callers_and_registries_unless_that_fails() -> None:
    sim = up(agent("A"))
    lay_down(sim)
    sim.behaviours[A] = Behaviour(fails=1, ready_after_s=1.0)
    assert wake(sim)
    row = sim.machines["m"].rows[A]
    assert (row.phase, row.record().phase) == (Phase.FORKED, "hibernated")
    sim.run(0.5)  # the first one failed, and another was forked
    row = sim.machines["m"].rows[A]
    assert (row.phase, row.record().phase, row.restarts) == (Phase.FORKED, "forked", 1)
    sim.run(2.0)
    assert sim.machines["m"].rows[A].record().phase == "ready"


def test_a_timer_wakes_it_when_it_is_due() -> None:
    sim = up(agent("A"))
    lay_down(sim, wake_in_s=30.0)
    sim.run(29.0)
    assert sim.phase(A) is Phase.HIBERNATED
    sim.run(2.0)
    assert sim.phase(A) is Phase.READY
    sleep = process(sim).sleep
    assert sleep is not None
    assert sleep.why == TIMER


def test_waking_wakes_nobody_else_unless_the_file_says_so_and_a_sleeper_is_as_good_as_ready_for_who_starts() -> None:
    sim = up(agent("A"), agent("B", "A"))
    lay_down(sim)
    lay_down(sim, "B")
    assert wake(sim, "B")
    sim.run(1.0)
    assert sim.phases() == {"A": "hibernated", "B": "ready"}
    sim = up(agent("A"), agent("B", "A", hibernate=HibernatePolicy(wake_dependencies=True)))
    lay_down(sim)
    lay_down(sim, "B")
    assert wake(sim, "B")
    sim.run(1.0)
    assert sim.phases() == {"A": "ready", "B": "ready"}


def test_a_wake_that_fails_spends_the_restart_budget_and_ends_as_failed_with_its_ports_given_back() -> None:
    never_again = RestartPolicy(max_attempts=1, delay_s=0.1, jitter=0.0, retry_failed_after_s=0.0)
    sim = up(agent("A", restart=never_again))
    lay_down(sim)
    sim.behaviours[A] = Behaviour(fails=10)
    assert wake(sim)
    sim.run(10.0)
    assert sim.phase(A) is Phase.FAILED
    assert performed(sim, Fork, CloseListeners) == [Fork(A), Fork(A), CloseListeners(A)]


def test_stop_start_and_down_of_a_sleeper() -> None:
    sim = up(agent("A"))
    lay_down(sim)
    sim.desire(revision(agent("A"), number=2, stopped=("A",)))
    assert (sim.phase(A), performed(sim, CloseListeners, Terminate)) == (Phase.STOPPED, [CloseListeners(A)])
    assert not wake(sim)
    sim.desire(revision(agent("A"), number=3))
    sim.run(1.0)
    lay_down(sim)
    sim.desire(revision(agent("A"), number=4, down=True))
    assert (sim.phase(A), sim.machines["m"].finished) == (Phase.STOPPED, True)


def test_an_operators_restart_of_a_sleeper_starts_it() -> None:
    sim = up(agent("A"))
    lay_down(sim)
    assert sim.machines["m"].core.restart([A], sim.now_s) == [A]
    sim.settle()
    sim.run(1.0)
    assert (sim.phase(A), performed(sim, Fork, ForkBeside)) == (Phase.READY, [Fork(A)])


def test_a_changed_spec_waits_for_the_next_wake_but_new_ports_are_listened_on_now() -> None:
    sim = up(agent("A"))
    lay_down(sim)
    sim.machines["m"].performed.clear()
    changed = agent("A", config={"x": 1})
    sim.desire(revision(changed, number=2))
    assert (sim.phase(A), sim.machines["m"].performed, process(sim).spec) == (Phase.HIBERNATED, [], changed)
    moved = agent("A", config={"x": 1}, port=7001)
    sim.desire(revision(moved, number=3))
    assert (sim.phase(A), sim.machines["m"].performed) == (Phase.HIBERNATED, [OpenListeners(A), LieDown(A)])
    assert row_of(process(sim), Place(), 1).endpoints == {"inbox-local": "tcp://127.0.0.1:7001"}
    assert wake(sim)
    sim.run(1.0)
    assert performed(sim, Fork, ForkBeside) == [Fork(A)]


def test_who_shall_not_sleep_any_more_is_woken() -> None:
    sim = up(agent("A", hibernate=DEEP))
    lay_down(sim)
    sim.desire(revision(agent("A", hibernate=HibernatePolicy(depth="never")), number=2))
    sim.run(1.0)
    assert sim.phase(A) is Phase.READY


def test_stopped_in_the_middle_of_falling_asleep_it_is_stopped_whatever_it_ends_with() -> None:
    sim = up(agent("A"))
    assert asks(sim) is None
    sim.desire(revision(agent("A"), number=2, stopped=("A",)))
    sim.exit(A, EXIT_ASLEEP)
    sim.settle()
    assert (sim.phase(A), performed(sim, LieDown)) == (Phase.STOPPED, [])


def test_a_changed_spec_in_the_middle_of_falling_asleep_ends_in_one_process_of_the_new_one() -> None:
    sim = up(agent("A"))
    assert asks(sim) is None
    sim.desire(revision(agent("A", config={"x": 1}), number=2))
    sim.exit(A, EXIT_ASLEEP, sim.processes[A])
    sim.settle()
    sim.run(5.0)
    assert sim.phase(A) is Phase.READY
    assert process(sim).spec.config == {"x": 1}
    assert (len(sim.of(A)), process(sim).swap) == (1, None)


def test_a_sleeper_is_remembered_with_its_wake_time_and_a_boot_leaves_nothing_else_of_it() -> None:
    sim = up(agent("A"))
    lay_down(sim, memory_mb=7.0, wake_in_s=60.0)
    p = process(sim)
    facts = facts_of(p, p.spec.digest())
    assert process_of(facts, p.spec).sleep == p.sleep
    booted = after_boot(facts)
    assert booted is not None
    q = process_of(booted, p.spec)
    assert (q.phase, q.failures, q.stamps.ready_s) == (Phase.HIBERNATED, (), None)
    found, actions = sleep_transitions.found_again(q, 5.0, WALL_S + sim.now_s + 20.0)
    assert (found.phase, found.deadline_s, actions) == (Phase.HIBERNATED, 45.0, [OpenListeners(A), LieDown(A)])
    late, _ = sleep_transitions.found_again(q, 5.0, WALL_S + sim.now_s + 2000.0)
    assert late.deadline_s == 5.0  # it was due while the machine was off
    awake = transitions.ready(running(), 1.0)
    assert after_boot(facts_of(awake, "d")) is None
