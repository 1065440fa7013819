"""One process: phases, deadlines, and the restart budget of configuration.md."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from agentkit.names import Incarnation
from startup.plan import ending, transitions
from startup.plan import process as proc
from startup.plan.actions import Abort, CloseListeners, Fork, Kill, OpenListeners, ProbeReady, Terminate
from startup.plan.phase import Health, Phase
from startup.plan.process import Leaving, Process
from startup.spec.fleet import ProgramTarget, ReadyWhen, RestartPolicy
from tests.startup.plan.builders import agent, aid

POLICY = RestartPolicy(delay_s=1.0, factor=2.0, max_delay_s=3.0, jitter=0.0, max_attempts=5, window_s=300.0)
RANDOM = Random(7)
A = aid("A")


def running(now_s: float = 0.0, **keys: object) -> Process:
    """A forked process of an agent made with `keys`."""
    keys.setdefault("restart", POLICY)
    p, _ = transitions.wanted(proc.new(agent("A", **keys), now_s), now_s)  # type: ignore[arg-type]
    p, _ = transitions.unblocked(p, now_s)
    return transitions.forked(p, 4711, Incarnation(9), now_s)[0]


def crash(p: Process, now_s: float, code: int | None = 1) -> Process:
    return ending.exited(p, code, now_s, RANDOM)[0]


def again(p: Process, now_s: float) -> Process:
    """Whatever it waits for passes, and it is forked once more."""
    if p.deadline_s is not None:
        p, _ = transitions.due(p, now_s)
    assert p.phase is Phase.WAITING
    return transitions.forked(transitions.unblocked(p, now_s)[0], 4712, Incarnation(10), now_s)[0]


def test_a_start_goes_through_its_phases_and_stamps_each() -> None:
    p, actions = transitions.wanted(proc.new(agent("A"), 1.0), 1.0)
    assert (p.phase, actions) == (Phase.WAITING, [OpenListeners(A)])
    p, actions = transitions.unblocked(p, 2.0, slowest_dependency="m/B")
    assert (p.phase, actions) == (Phase.FORKED, [Fork(A)])
    p, actions = transitions.forked(p, 4711, Incarnation(9), 3.0)
    assert (p.pid, p.incarnation, actions) == (4711, 9, [])
    p = transitions.progressed(p, Phase.IMPORTING, 4.0)
    p = transitions.progressed(p, Phase.STARTING, 5.0)
    p = transitions.ready(p, 6.0, {"slow": 30.0})
    assert (p.phase, p.timeouts_s, p.slowest_dependency) == (Phase.READY, {"slow": 30.0}, "m/B")
    s = p.stamps
    assert [s.wanted_s, s.unblocked_s, s.forked_s, s.importing_s, s.starting_s, s.ready_s] == [1, 2, 3, 4, 5, 6]


def test_words_that_come_late_or_from_a_leaving_process_change_nothing() -> None:
    p = transitions.ready(running(), 1.0)
    assert transitions.progressed(p, Phase.IMPORTING, 2.0) is p
    leaving, _ = transitions.stop(p, 3.0, Leaving.STOP)
    assert transitions.ready(leaving, 4.0) is leaving
    assert transitions.leaves(leaving, 4.0) is leaving


def test_ready_told_again_refreshes_what_it_says_and_nothing_else() -> None:
    p = transitions.ready(running(), 1.0, {"a": 1.0})
    q = transitions.ready(p, 50.0, {"b": 2.0})
    assert q == replace(p, timeouts_s={"b": 2.0})
    assert transitions.ready(q, 51.0).timeouts_s == {"b": 2.0}


def test_a_program_that_cannot_notify_is_probed_after_its_fork() -> None:
    keys = {"target": ProgramTarget(argv=("x",)), "ready": ReadyWhen(tcp_port=7000)}
    p, _ = transitions.unblocked(proc.new(agent("A", **keys), 0.0), 0.0)
    assert transitions.forked(p, 1, Incarnation(1), 0.0)[1] == [ProbeReady(A)]


def test_a_process_told_to_go_before_its_fork_was_answered_goes_right_after() -> None:
    p, _ = transitions.unblocked(proc.new(agent("A"), 0.0), 0.0)
    p, actions = transitions.stop(p, 0.0, Leaving.STOP)
    assert (p.phase, actions) == (Phase.STOPPING, [])
    p, actions = transitions.forked(p, 4711, Incarnation(1), 0.1)
    assert actions == [Terminate(A, Incarnation(1))]
    p, actions = ending.exited(p, -15, 0.2, RANDOM)
    assert (p.phase, p.last_exit, actions) == (Phase.STOPPED, "signal SIGTERM after 0.1 s", [CloseListeners(A)])


def test_a_stop_is_asked_for_then_forced_then_forced_again() -> None:
    p, actions = transitions.stop(transitions.ready(running(shutdown_grace_s=3.0), 1.0), 10.0, Leaving.STOP)
    assert (p.phase, p.deadline_s, actions) == (Phase.STOPPING, 13.0, [Terminate(A, Incarnation(9))])
    assert transitions.due(p, 12.9) == (p, [])
    p, actions = transitions.due(p, 13.0)
    assert actions == [Kill(A, Incarnation(9))]
    assert transitions.due(p, 13.0 + transitions.KILL_AGAIN_S)[1] == [Kill(A, Incarnation(9))]


def test_a_stop_of_a_slot_without_process_is_done_at_once() -> None:
    p, _ = transitions.wanted(proc.new(agent("A"), 0.0), 0.0)
    p, actions = transitions.stop(p, 1.0, Leaving.STOP)
    assert (p.phase, actions) == (Phase.STOPPED, [CloseListeners(A)])


def test_a_restart_brings_it_back_with_its_budget_untouched() -> None:
    p, _ = transitions.stop(transitions.ready(running(), 1.0), 2.0, Leaving.RESTART)
    p, actions = ending.exited(p, 0, 3.0, RANDOM)
    assert (p.phase, p.restarts, p.failures, actions) == (Phase.WAITING, 0, (), [OpenListeners(A)])


def test_a_stop_that_follows_a_restart_wins() -> None:
    p, _ = transitions.stop(running(), 2.0, Leaving.RESTART)
    p, actions = transitions.stop(p, 2.5, Leaving.STOP)
    assert actions == []
    assert crash(p, 3.0, 0).phase is Phase.STOPPED


def test_the_first_failure_restarts_at_once_and_the_delay_applies_from_the_second_on() -> None:
    p = crash(running(0.0), 1.0)
    assert (p.phase, p.restarts, p.reason) == (Phase.WAITING, 1, "exit 1")
    delays = []
    now_s = 1.0
    for _ in range(4):
        p = crash(again(p, now_s), now_s)
        delays.append((p.deadline_s or 0.0) - now_s)
        assert p.phase is Phase.BACKOFF
        now_s = p.deadline_s or 0.0
    assert delays == [1.0, 2.0, 3.0, 3.0]  # factor 2, at most max_delay
    p = crash(again(p, now_s), now_s)
    assert (p.phase, p.deadline_s) == (Phase.FAILED, now_s + POLICY.retry_failed_after_s)


def test_jitter_spreads_the_delay_both_ways_from_the_given_source() -> None:
    policy = replace(POLICY, jitter=0.5, max_attempts=100)
    delays = set()
    for seed in range(50):
        p = again(crash(running(0.0, restart=policy), 1.0), 1.0)
        p, _ = ending.exited(p, 1, 1.0, Random(seed))
        delays.add((p.deadline_s or 0) - 1.0)
    assert min(delays) < 0.7 < 1.3 < max(delays)
    assert all(0.5 <= delay <= 1.5 for delay in delays)


def test_a_stable_period_makes_the_next_failure_a_first_one_again() -> None:
    p = again(crash(running(0.0), 1.0), 1.0)
    p = transitions.ready(p, 2.0)
    p = crash(p, 2.0 + POLICY.stable_after_s)
    assert (p.phase, p.streak) == (Phase.WAITING, 1)


def test_attempts_are_counted_per_window_even_between_stable_periods() -> None:
    policy = replace(POLICY, max_attempts=2, stable_after_s=10.0, window_s=100.0)
    p = running(0.0, restart=policy)
    for now_s in (20.0, 40.0):
        p = again(crash(transitions.ready(p, now_s - 15), now_s), now_s)
    q = crash(transitions.ready(p, 45.0), 60.0)
    assert q.phase is Phase.FAILED
    later = crash(transitions.ready(p, 45.0), 145.0)  # both earlier failures have left the window
    assert later.phase is Phase.WAITING


def test_what_failed_is_tried_again_slowly_and_gets_its_ports_back() -> None:
    p = crash(running(0.0, restart=replace(POLICY, max_attempts=0, retry_failed_after_s=60.0)), 1.0)
    assert (p.phase, p.deadline_s) == (Phase.FAILED, 61.0)
    p, actions = transitions.due(p, 61.0)
    assert (p.phase, actions, p.restarts) == (Phase.WAITING, [OpenListeners(A)], 1)


@pytest.mark.parametrize(
    "policy", [replace(POLICY, max_attempts=0, retry_failed_after_s=0), replace(POLICY, policy="never")]
)
def test_without_retry_what_failed_stays_so(policy: RestartPolicy) -> None:
    p, actions = ending.exited(running(0.0, restart=policy), 1, 1.0, RANDOM)
    assert (p.phase, p.deadline_s, actions) == (Phase.FAILED, None, [CloseListeners(A)])


@pytest.mark.parametrize(
    ("code", "words"), [(1, "exit 1"), (-9, "signal SIGKILL"), (-250, "signal 250"), (None, "exit unknown")]
)
def test_every_unasked_exit_counts_as_a_failure_and_is_named(code: int | None, words: str) -> None:
    p = crash(transitions.ready(running(), 1.0), 120.0, code)
    assert (p.phase, p.last_exit, p.restarts) == (Phase.WAITING, f"{words} after 2 min", 1)


def test_a_service_that_ends_with_0_unasked_has_failed_and_is_told_about_tasks() -> None:
    p = crash(running(), 1.0, 0)
    assert p.phase is Phase.WAITING
    assert "kind: task" in p.reason


def test_a_task_completes_with_0_and_fails_otherwise() -> None:
    p, actions = ending.exited(transitions.leaves(running(kind="task"), 0.5), 0, 1.0, RANDOM)
    assert (p.phase, actions) == (Phase.COMPLETED, [CloseListeners(A)])
    assert crash(running(kind="task"), 1.0, 3).phase is Phase.WAITING


def test_what_an_agent_says_of_its_failure_is_the_reason_shown() -> None:
    p = crash(replace(running(), excuse="RuntimeError: no model"), 1.0)
    assert p.reason == "RuntimeError: no model"


def test_a_start_that_takes_too_long_is_aborted_then_killed_and_counts() -> None:
    p = replace(running(0.0, start_timeout_s=5.0), status_text="loading weights")
    p, actions = transitions.due(p, 5.0)
    assert (p.phase, p.leaving, actions) == (Phase.STOPPING, Leaving.START_TIMEOUT, [Abort(A, Incarnation(9))])
    p, actions = transitions.due(p, 5.0 + transitions.ABORT_GRACE_S)
    assert actions == [Kill(A, Incarnation(9))]
    p = crash(p, 8.0, -9)
    assert p.phase is Phase.WAITING
    assert p.last_exit == "start timeout (signal SIGKILL) after 8 s"
    assert "not ready within 5 s" in p.reason
    assert "loading weights" in p.reason


def test_a_starved_watchdog_aborts_and_a_fed_one_only_moves_the_deadline() -> None:
    p = transitions.ready(running(watchdog_s=30.0), 1.0)
    assert p.deadline_s == 31.0
    p = transitions.fed(p, 20.0)
    assert p.deadline_s == 31.0  # feeding arms no timer
    p, actions = transitions.due(p, 31.0)
    assert (p.deadline_s, actions) == (50.0, [])
    p, actions = transitions.due(p, 50.0)
    assert (p.leaving, actions) == (Leaving.WATCHDOG, [Abort(A, Incarnation(9))])
    assert crash(p, 51.0, -6).last_exit == "watchdog (signal SIGABRT) after 51 s"


def test_a_program_is_watched_only_once_it_has_fed_the_watchdog() -> None:
    p = transitions.ready(running(target=ProgramTarget(argv=("x",)), watchdog_s=30.0), 1.0)
    assert p.deadline_s is None
    assert transitions.fed(p, 5.0).deadline_s == 35.0


def test_no_watchdog_means_none() -> None:
    assert transitions.ready(running(watchdog_s=0.0), 1.0).deadline_s is None


def test_a_process_that_leaves_by_itself_has_its_grace_and_then_counts_as_failed() -> None:
    p = transitions.leaves(transitions.ready(running(shutdown_grace_s=4.0), 1.0), 2.0)
    assert (p.phase, p.deadline_s) == (Phase.STOPPING, 6.0)
    assert transitions.due(p, 6.0)[1] == [Kill(A, Incarnation(9))]
    assert crash(p, 3.0, 0).phase is Phase.WAITING


def test_a_fork_that_fails_spends_the_budget_and_keeps_its_reason() -> None:
    p, _ = transitions.unblocked(proc.new(agent("A", restart=POLICY), 0.0), 0.0)
    p, _ = ending.fork_failed(p, "port 7000 is taken", 0.0, RANDOM)
    assert (p.phase, p.reason, p.restarts) == (Phase.WAITING, "port 7000 is taken", 1)


def test_an_adopted_process_goes_on_where_it_was() -> None:
    remembered = replace(transitions.ready(running(watchdog_s=30.0), 1.0), requests=5)
    p, actions = transitions.adopted(remembered, pid=4711, incarnation=Incarnation(9), phase=Phase.READY, now_s=100.0)
    assert (p.phase, p.requests, actions) == (Phase.READY, 5, [])
    moved, actions = transitions.due(p, 100.0)
    assert (moved.deadline_s, actions) == (130.0, [])  # its watchdog counts from the adoption
    starting = running(target=ProgramTarget(argv=("x",)), ready=ReadyWhen(tcp_port=1), start_timeout_s=5.0)
    p, actions = transitions.adopted(starting, pid=1, incarnation=Incarnation(9), phase=Phase.STARTING, now_s=100.0)
    assert (p.deadline_s, actions) == (105.0, [ProbeReady(A)])


def test_a_new_process_starts_without_what_the_last_one_said() -> None:
    p = replace(
        transitions.ready(running(), 1.0), health=Health.FAILING, health_reason="db", status_text="x", excuse="y"
    )
    p = again(crash(p, 100.0), 100.0)
    assert (p.health, p.health_reason, p.status_text, p.last_error, p.excuse) == (Health.OK, "", "", "y", "")
