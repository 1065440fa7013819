"""The rules of `on_error`, and what they do to a process."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from agentkit.names import AgentId
from agentkit.observe.reports import PROCESS
from startup.plan import ending, transitions
from startup.plan import process as proc
from startup.plan.actions import CloseListeners, OpenListeners, Terminate
from startup.plan.incidents import Incidents
from startup.plan.phase import Phase
from startup.plan.process import Leaving, Process
from startup.plan.reactions import MAX_ARRIVALS, Reaction, Reactions, Seen
from startup.spec.fleet import ErrorRule, RestartPolicy
from tests.startup.plan.builders import agent, aid
from tests.startup.plan.test_process import crash, running

A = aid("A")
RESTART = ErrorRule(do="restart", severity="critical")
HOOK = ErrorRule(do="webhook", severity="error", url="http://host/")
QUARANTINE = ErrorRule(do="quarantine", severity="error", after=3, within_s=10.0)


def seen(severity: str = "critical", count: int = 1, group: str = "g", kind: str = "report", id: AgentId = A) -> Seen:
    return Seen(id=id, incarnation=9, group=group, severity=severity, kind=kind, message="it broke", count=count)


def done(found: list[Reaction]) -> list[str]:
    return [reaction.rule.do for reaction in found]


def test_a_rule_is_for_its_severity_and_worse() -> None:
    reactions = Reactions()
    assert done(reactions.consider((HOOK, RESTART), seen("warning"), 0.0)) == []
    assert done(reactions.consider((HOOK, RESTART), seen("error"), 0.0)) == ["webhook"]
    assert done(reactions.consider((HOOK, RESTART), seen("critical", group="h"), 0.0)) == ["webhook", "restart"]


def test_a_rule_waits_until_there_are_enough_within_its_window() -> None:
    reactions = Reactions()
    at = [done(reactions.consider((QUARANTINE,), seen("error"), now_s)) for now_s in (0.0, 9.0, 11.0, 12.0)]
    assert at == [[], [], [], ["quarantine"]]


def test_a_storm_counts_with_all_its_reports() -> None:
    (reaction,) = Reactions().consider((QUARANTINE,), seen("error", count=100_000), 0.0)
    assert reaction.why == "100000 errors within 10 s, the last: error: it broke"


def test_after_it_acted_a_rule_rests_and_counts_anew() -> None:
    reactions = Reactions()
    times = [now_s for now_s in range(0, 200, 5) if reactions.consider((RESTART,), seen(), float(now_s))]
    assert times == [0, 60, 120, 180]


def test_a_webhook_rests_for_the_same_error_only() -> None:
    reactions = Reactions()
    assert done(reactions.consider((HOOK,), seen(group="one"), 0.0)) == ["webhook"]
    assert done(reactions.consider((HOOK,), seen(group="one"), 1.0)) == []
    (later,) = reactions.consider((HOOK,), seen(group="one"), 60.5)
    assert later.count == 2, "with what came while it rested, as far as its window goes back"
    assert done(reactions.consider((HOOK,), seen(group="two"), 61.0)) == ["webhook"]


def test_agents_are_counted_apart_and_forgotten_with_their_rules() -> None:
    reactions = Reactions()
    reactions.consider((QUARANTINE,), seen("error", 2), 0.0)
    assert not reactions.consider((QUARANTINE,), seen("error", 2, id=aid("B")), 0.0)
    reactions.keep({A: (), aid("B"): (QUARANTINE,)})
    assert not reactions.consider((QUARANTINE,), seen("error", 2), 1.0)
    assert reactions.consider((QUARANTINE,), seen("error", 1, id=aid("B")), 1.0)


def test_a_process_that_failed_is_not_restarted_twice() -> None:
    assert done(Reactions().consider((RESTART, QUARANTINE), seen(kind=PROCESS, count=3), 0.0)) == ["quarantine"]


def test_what_is_quarantined_is_not_restarted_beside() -> None:
    assert done(Reactions().consider((RESTART, QUARANTINE, HOOK), seen(count=3), 0.0)) == ["quarantine", "webhook"]


def test_what_is_remembered_is_bounded() -> None:
    rule = replace(QUARANTINE, after=1_000_000, within_s=1e6)
    reactions = Reactions()
    for n in range(5000):
        reactions.consider((rule,), seen("error"), float(n))
    (state,) = reactions._states.values()
    assert len(state.arrivals) == MAX_ARRIVALS
    assert sum(count for _, count in state.arrivals) == 5000


# -- what a rule does to a process

POLICY = RestartPolicy(max_attempts=2, window_s=300.0, jitter=0.0)


def ready(now_s: float = 0.0) -> Process:
    return transitions.ready(running(now_s, restart=POLICY), now_s)


def test_a_restart_by_rule_is_counted_and_spends_the_restart_budget() -> None:
    p = ready()
    for n in (1, 2):
        p, actions = transitions.restarted_by_rule(p, "why", float(n))
        assert (p.phase, p.leaving, p.restarts, actions) == (
            Phase.STOPPING,
            Leaving.RESTART,
            n,
            [Terminate(A, p.incarnation)],
        )
        p = crash(p, n + 0.5, 0)
        assert p.phase is Phase.WAITING
        p = transitions.ready(transitions.forked(transitions.unblocked(p, n)[0], 1, p.incarnation, n)[0], n)
    assert transitions.restarted_by_rule(p, "why", 3.0) == (p, [])
    assert transitions.restarted_by_rule(p, "why", 302.5)[1] == [Terminate(A, p.incarnation)], (
        "later there is budget again"
    )


def test_only_what_is_ready_is_restarted_by_a_rule() -> None:
    gone, stopped = crash(ready(), 1.0), transitions.stop(ready(), 1.0, Leaving.STOP)[0]
    for p in (gone, stopped, running(0.0), proc.new(agent("A"), 0.0)):
        assert transitions.restarted_by_rule(p, "why", 2.0) == (p, [])


def test_a_quarantined_process_is_stopped_and_stays_so_with_its_reason() -> None:
    p, actions = transitions.quarantined(ready(), "3 errors", 1.0)
    assert (p.phase, p.is_quarantined, actions) == (Phase.STOPPING, True, [Terminate(A, p.incarnation)])
    p, actions = ending.exited(ending.gone(p, 2.0), 0, 2.0, Random(1))
    assert (p.phase, p.reason, p.deadline_s) == (Phase.FAILED, "quarantined: 3 errors", None)
    assert p.is_quarantined
    assert actions == [CloseListeners(A)]
    assert transitions.due(p, 1e9) == (p, [])


def test_a_process_that_is_waiting_to_be_restarted_is_quarantined_at_once() -> None:
    p = crash(crash_again(), 5.0)
    assert p.phase is Phase.BACKOFF
    p, _ = transitions.quarantined(p, "why", 6.0)
    assert (p.phase, p.is_quarantined, p.deadline_s) == (Phase.FAILED, True, None)


def crash_again() -> Process:
    p = crash(running(0.0), 1.0)
    return transitions.forked(transitions.unblocked(p, 1.0)[0], 5, p.incarnation, 1.0)[0]


def test_an_operator_puts_it_back() -> None:
    p, _ = transitions.quarantined(ready(), "why", 1.0)
    p, _ = ending.exited(p, 0, 2.0, Random(1))
    p, actions = transitions.stop(ending.forgiven(p), 3.0, Leaving.RESTART)
    assert (p.phase, p.is_quarantined, p.reason, actions) == (Phase.WAITING, False, "", [OpenListeners(A)])


# -- what a node reports of its processes


def test_a_failure_that_is_restarted_is_an_error_and_giving_up_is_critical() -> None:
    incidents = Incidents()
    p = ready()
    assert incidents.noticed(p, 0.0) is None
    p = crash(p, 10.0, -9)
    found = incidents.noticed(p, 10.0)
    assert found is not None
    assert (found.severity, found.kind, found.message) == (
        "error",
        PROCESS,
        "failed and is started again: signal SIGKILL",
    )
    assert incidents.noticed(p, 11.0) is None, "once"
    p = replace(p, phase=Phase.FAILED, reason="exit 1")
    found = incidents.noticed(p, 12.0)
    assert found is not None
    assert (found.severity, found.message) == ("critical", "given up: exit 1")
    assert incidents.noticed(p, 13.0) is None


def test_a_failure_is_noticed_though_the_next_start_is_under_way_already() -> None:
    incidents = Incidents()
    p = crash(ready(), 10.0)
    p = transitions.forked(transitions.unblocked(p, 10.0)[0], 7, p.incarnation, 10.0)[0]
    found = incidents.noticed(p, 10.0)
    assert found is not None
    assert "exit 1" in found.message


def test_what_an_earlier_node_reported_is_not_reported_again() -> None:
    p = crash(ready(), 10.0)
    incidents = Incidents()
    incidents.remember(A, {"failures": list(p.failures), "phase": p.phase.value})
    assert incidents.noticed(p, 11.0) is None


def test_stops_restarts_and_quarantines_are_no_failures() -> None:
    for leaving in (Leaving.STOP, Leaving.RESTART):
        incidents = Incidents()
        p, _ = transitions.stop(ready(), 1.0, leaving)
        assert incidents.noticed(p, 1.0) is None
        assert incidents.noticed(crash(p, 2.0, 0), 2.0) is None
    incidents = Incidents()
    p, _ = transitions.restarted_by_rule(ready(), "why", 1.0)
    assert incidents.noticed(p, 1.0) is None
    p, _ = transitions.quarantined(ready(), "why", 1.0)
    assert incidents.noticed(p, 1.0) is None
    assert incidents.noticed(crash(p, 2.0, 0), 2.0) is None
