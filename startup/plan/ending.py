"""What becomes of a slot whose process has ended: done, asleep, begun anew, or failed and started again within its restart budget.
Without I/O."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from agentkit.agent.orders import EXIT_ASLEEP
from startup.plan.actions import CloseListeners, LieDown, OpenListeners
from startup.plan.phase import ALIVE, Phase
from startup.plan.process import ASKED, BLANK, Leaving, Outcome, Process, to
from startup.plan.row import Stamps
from startup.plan.sleep_record import Sleep
from startup.plan.words import as_cause, describe_exit, in_words


def gone(p: Process, now_s: float) -> Process:
    """It has ended; what it left behind is still being cleared away. `exited` follows."""
    if p.phase not in ALIVE:
        return p
    if p.leaving is Leaving.SLEEP:
        return replace(p, pid=None, deadline_s=None)  # a moment more, and it sleeps: nobody need know of this one
    phase = Phase.DRAINING if p.phase is Phase.DRAINING else Phase.STOPPING  # draining: its successor is next
    return to(p, phase, now_s, leaving=p.leaving, pid=None)


def exited(p: Process, code: int | None, now_s: float, random: Random, *, over: str = "") -> Outcome:
    """Nothing of it is left. `code`: its exit code, -N for signal N, None when nobody could reap it. `over`: the limit that the
    kernel killed it for."""
    lived_s = now_s - (p.stamps.forked_s if p.stamps.forked_s is not None else p.since_s)
    if p.leaving not in ASKED and (code == EXIT_ASLEEP or (code is None and p.leaving is Leaving.SLEEP)):
        return _fallen_asleep(p, now_s)
    how = describe_exit(code)
    if p.leaving not in ASKED and p.leaving is not Leaving.NO:
        how = f"{p.leaving.value} ({how})"
    elif p.away and p.leaving is Leaving.RESTART:
        how = f"restarted {p.away} ({how})"
    p = replace(p, last_exit=f"{how} after {in_words(lived_s)}", pid=None)
    if p.leaving in ASKED:
        return left(p, now_s)
    if code == 0 and p.spec.kind == "task" and p.leaving in (Leaving.NO, Leaving.ITSELF):
        return to(p, Phase.COMPLETED, now_s), [CloseListeners(p.id)]
    if code == 0:
        how += ", unasked; write `kind: task` if it is meant to end"
    return _failed(p, over or p.excuse or how, now_s, random)


def fork_failed(p: Process, reason: str, now_s: float, random: Random) -> Outcome:
    """There is no process: a port is taken, the zygote refuses, memory is short."""
    p = replace(p, pid=None)
    if p.leaving in ASKED:
        return left(p, now_s)
    return _failed(p, reason, now_s, random)


def forgiven(p: Process) -> Process:
    """An operator looked at it: the budget starts anew."""
    return replace(p, failures=(), streak=0)


def left(p: Process, now_s: float) -> Outcome:
    """It is gone as we asked."""
    if p.leaving is Leaving.RESTART:
        # what the others of its group are restarted for is said while it waits, too
        facts = {**BLANK, "reason": f"restarted {p.away}" if p.away else "", "away": p.away or "stopped to begin anew"}
        return to(p, Phase.WAITING, now_s, **facts, stamps=Stamps(wanted_s=now_s)), [OpenListeners(p.id)]
    if p.leaving is Leaving.QUARANTINE:
        return to(p, Phase.FAILED, now_s, because="", waiting_for=()), [CloseListeners(p.id)]
    return to(p, Phase.STOPPED, now_s, **BLANK, away=""), [CloseListeners(p.id)]


def _fallen_asleep(p: Process, now_s: float) -> Outcome:
    """Nothing of it is left, as it wanted."""
    due_s = p.sleep.due_s if p.sleep else None
    p = to(
        p,
        Phase.HIBERNATED,
        now_s,
        **BLANK,
        pid=None,
        status_text="",
        fed_s=None,
        deadline_s=due_s,
        sleep=p.sleep or Sleep(),
    )
    return p, [LieDown(p.id)]


def _failed(p: Process, reason: str, now_s: float, random: Random) -> Outcome:
    """Spend the budget: at once after a stable period, then slower, then not for a long time."""
    policy = p.spec.restart
    ready_s = p.stamps.ready_s
    p = replace(p, last_error=reason, away=as_cause(reason), sleep=p.sleep and p.sleep.failed())
    was_stable = ready_s is not None and now_s - ready_s >= policy.stable_after_s
    streak = 1 if was_stable else p.streak + 1
    recent = tuple(at_s for at_s in p.failures if at_s > now_s - policy.window_s)
    if policy.policy == "never" or len(recent) >= policy.max_attempts:
        retry_s = (
            now_s + policy.retry_failed_after_s if policy.retry_failed_after_s and policy.policy != "never" else None
        )
        p = to(p, Phase.FAILED, now_s, reason=reason, failures=recent, streak=streak, deadline_s=retry_s)
        return p, [CloseListeners(p.id)]
    recent = (*recent, now_s)
    if streak == 1:
        p = to(p, Phase.WAITING, now_s, reason=reason, failures=recent, streak=1, stamps=Stamps(wanted_s=now_s))
        return replace(p, restarts=p.restarts + 1), []
    delay_s = min(policy.delay_s * policy.factor ** (streak - 2), policy.max_delay_s)
    delay_s *= 1 + policy.jitter * (2 * random.random() - 1)
    return to(p, Phase.BACKOFF, now_s, reason=reason, failures=recent, streak=streak, deadline_s=now_s + delay_s), []
