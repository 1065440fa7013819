"""What happens to one slot until its process has ended: an event in, a new `Process` and actions out. Without I/O.

Each function asserts nothing about its source phase that a race could break: an event that no longer fits (READY from a process that
was told to go) leaves the process as it is. The phases are drawn in process.py; what comes after an end is ending.py's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from agentkit.names import Incarnation
from startup.plan.actions import (
    Abort,
    Action,
    Fork,
    Kill,
    OpenListeners,
    ProbeReady,
    Terminate,
)
from startup.plan.ending import left
from startup.plan.phase import ALIVE, COMING_UP, GOING, Phase
from startup.plan.process import BLANK, QUARANTINED, UNTOLD, Leaving, Outcome, Process, to
from startup.plan.row import Stamps
from startup.plan.words import in_words
from startup.spec.fleet import AgentTarget

#: How long an aborted process may write its stacks before it is killed, seconds.
ABORT_GRACE_S: Final = 2.0
#: A killed process that is still there (in the kernel's uninterruptible sleep) is killed again this often, seconds.
KILL_AGAIN_S: Final = 5.0
#: From here on a watchdog's deadline is a whole second.
_LONG_WATCHDOG_S: Final = 10.0


def wanted(p: Process, now_s: float) -> Outcome:
    """It shall run: hold its ports from now on, so that nobody takes them while it waits."""
    p = to(p, Phase.WAITING, now_s, **BLANK, failures=(), streak=0, restarts=0, away="", stamps=Stamps(wanted_s=now_s))
    return p, [OpenListeners(p.id)]


def blocked(p: Process, now_s: float, *, waiting_for: tuple[str, ...], because: str, reason: str) -> Process:
    """What keeps it from starting; `because` names the root cause when no waiting helps."""
    phase = Phase.SKIPPED if because else Phase.WAITING
    if (p.phase, p.waiting_for, p.because, p.reason) == (phase, waiting_for, because, reason):
        return p
    since_s = p.since_s if p.phase is phase else now_s
    return replace(
        p, phase=phase, since_s=since_s, waiting_for=waiting_for, because=because, reason=reason, deadline_s=None
    )


def unblocked(p: Process, now_s: float, *, slowest_dependency: str = "") -> Outcome:
    """Nothing is in its way: fork it. It counts as alive from here on, its pid comes with `forked`."""
    stamps = Stamps(wanted_s=p.stamps.wanted_s, unblocked_s=now_s)
    p = to(p, Phase.FORKED, now_s, **BLANK, **UNTOLD, stamps=stamps, slowest_dependency=slowest_dependency)
    p = replace(p, deadline_s=now_s + p.spec.start_timeout_s)
    return p, [Fork(p.id)]


def ordered(p: Process, incarnation: Incarnation, key: str = "") -> Process:
    """The fork is on order: from here on, what is told of `incarnation` is about this process. `key`: that it serves with."""
    return replace(p, incarnation=incarnation, key=key)


def forked(p: Process, pid: int, incarnation: Incarnation, now_s: float) -> Outcome:
    """The fork came about. If it was told to go meanwhile, it goes now; if its end was told first, it stays ended."""
    if p.phase is not Phase.FORKED and p.phase is not Phase.STOPPING:
        return p, []
    p = replace(p, pid=pid, incarnation=incarnation, stamps=replace(p.stamps, forked_s=now_s))
    if p.phase is Phase.STOPPING:
        return p, [Terminate(p.id, incarnation)]
    return p, [] if p.spec.ready.notify else [ProbeReady(p.id)]


def untimed(p: Process) -> Process:
    """Its start may take as long as it likes: somebody steps through it with a debugger."""
    return replace(p, deadline_s=None) if p.phase in COMING_UP else p


def adopted(p: Process, *, pid: int, incarnation: Incarnation, phase: Phase, now_s: float) -> Outcome:
    """A process of an earlier node, found alive. What it was doing is `phase`; unknown progress counts from now."""
    coming_up = phase in COMING_UP
    patience_s = p.spec.shutdown_grace_s if phase in GOING else 0.0 if phase is Phase.READY else p.spec.start_timeout_s
    deadline_s = now_s + patience_s
    p = replace(
        p,
        phase=phase,
        pid=pid,
        incarnation=incarnation,
        since_s=now_s,
        deadline_s=deadline_s,
        fed_s=now_s if p.fed_s else None,
    )
    return p, [ProbeReady(p.id)] if coming_up and not p.spec.ready.notify else []


def progressed(p: Process, phase: Phase, now_s: float) -> Process:
    """It says that it is importing, parked or starting. Never backwards, and nothing a leaving process says counts."""
    if phase is Phase.IMPORTING and p.phase is Phase.FORKED:
        return replace(p, phase=phase, since_s=now_s, stamps=replace(p.stamps, importing_s=now_s))
    if phase is Phase.PARKED and p.phase in (Phase.FORKED, Phase.IMPORTING):
        return replace(p, phase=phase, since_s=now_s, deadline_s=None)
    if phase is Phase.STARTING and p.phase in (Phase.FORKED, Phase.IMPORTING, Phase.PARKED):
        return replace(p, phase=phase, since_s=now_s, stamps=replace(p.stamps, starting_s=now_s))
    return p


def ready(
    p: Process,
    now_s: float,
    timeouts_s: Mapping[str, float] | None = None,
    traits: Mapping[str, Mapping[str, Any]] | None = None,
) -> Process:
    """READY=1, or its probe succeeded. Told again (to a new node) it only refreshes what it says."""
    if p.phase not in COMING_UP and p.phase is not Phase.READY:
        return p
    told_s = p.timeouts_s if timeouts_s is None else timeouts_s
    told = p.traits if traits is None else traits
    if p.phase is Phase.READY:
        return p if (told_s, told) == (p.timeouts_s, p.traits) else replace(p, timeouts_s=told_s, traits=told)
    # an agent's runtime feeds the watchdog by itself, so it is expected to from here on; a program only once it did
    fed_s = now_s if isinstance(p.spec.target, AgentTarget) else p.fed_s
    stamps = replace(p.stamps, ready_s=now_s)
    sleep = p.sleep and p.sleep.ready(now_s)
    p = to(
        p, Phase.READY, now_s, stamps=stamps, timeouts_s=told_s, traits=told, fed_s=fed_s, sleep=sleep, away=""
    )  # fmt: skip
    return replace(p, deadline_s=_watchdog_deadline_s(p))


def fed(p: Process, now_s: float) -> Process:
    """WATCHDOG=1. The deadline stays: it is moved when it comes, so that feeding re-arms no timer."""
    p = replace(p, fed_s=now_s)
    if p.phase is Phase.READY and p.deadline_s is None:
        p = replace(p, deadline_s=_watchdog_deadline_s(p))
    return p


def leaves(p: Process, now_s: float) -> Process:
    """STOPPING=1: expected when we asked; else it has its grace period and then counts as failed."""
    if p.phase not in ALIVE or p.phase in GOING or p.leaving is Leaving.SLEEP:
        return p
    return to(p, Phase.STOPPING, now_s, leaving=Leaving.ITSELF, deadline_s=now_s + p.spec.shutdown_grace_s)


def stop(p: Process, now_s: float, why: Leaving) -> Outcome:
    """Tell it to go (SIGTERM, grace, SIGKILL); a slot without a process is stopped, or waiting again, at once."""
    if p.phase not in ALIVE:
        return left(replace(p, leaving=why), now_s)
    if p.phase in GOING:
        # on its way already, for whatever reason: what counts is what shall be afterwards. An abort's short limit stays
        return replace(p, leaving=why), []
    p = to(p, Phase.STOPPING, now_s, leaving=why, deadline_s=now_s + p.spec.shutdown_grace_s)
    return p, [Terminate(p.id, p.incarnation)] if p.pid is not None else []


def restarted_by_rule(p: Process, why: str, now_s: float) -> Outcome:
    """As an operator's restart, but out of the restart budget: unchanged when that is used up, or it is not ready: what comes up or
    goes down is beginning anew already."""
    recent = tuple(at_s for at_s in p.failures if at_s > now_s - p.spec.restart.window_s)
    if p.phase is not Phase.READY or len(recent) >= p.spec.restart.max_attempts:
        return p, []
    p, actions = stop(p, now_s, Leaving.RESTART)
    return replace(p, failures=(*recent, now_s), restarts=p.restarts + 1, last_error=why), actions


def restarted_with(p: Process, cause: str, now_s: float) -> Outcome:
    """It begins anew because another agent does (strategies.py); what goes, or is not there, is left alone. No failure of its own."""
    if p.phase not in ALIVE or p.phase in GOING:
        return p, []
    p, actions = stop(p, now_s, Leaving.RESTART)
    return replace(p, away=cause, reason=f"restarted {cause}"), actions


def quarantined(p: Process, why: str, now_s: float) -> Outcome:
    """Out of service until an operator starts it: stopped gracefully, then `failed` without another attempt."""
    if p.phase in ALIVE:
        p, actions = stop(p, now_s, Leaving.QUARANTINE)
        return replace(p, reason=QUARANTINED + why, last_error=why), actions
    return left(replace(p, reason=QUARANTINED + why, leaving=Leaving.QUARANTINE), now_s)


def over_limit(p: Process, why: str, now_s: float) -> Outcome:
    """It uses more than it may: killed, and started again within its budget. One that goes anyway has its grace period."""
    if p.phase not in ALIVE or p.phase in GOING:
        return p, []
    p = to(
        p,
        Phase.STOPPING,
        now_s,
        leaving=Leaving.LIMIT,
        deadline_s=now_s + KILL_AGAIN_S,
        excuse=why,
        reason=why,
        away=why,
    )
    return p, [Kill(p.id, p.incarnation)] if p.pid is not None else []


def unresponsive(p: Process, why: str, now_s: float) -> Outcome:
    """A program's probe fails, again and again: as an agent whose loop is stuck."""
    if p.phase is not Phase.READY:
        return p, []
    return _abort(replace(p, excuse=why), now_s, Leaving.SILENT)


def due(p: Process, now_s: float) -> Outcome:
    """Its deadline has come."""
    if p.deadline_s is None or now_s < p.deadline_s:
        return p, []
    if p.phase in COMING_UP:
        said = f"; its last word: {p.status_text}" if p.status_text else ""
        limit = in_words(p.spec.start_timeout_s)
        p = replace(
            p,
            excuse=f"not ready within {limit} (was {p.phase.value}{said}); its stacks are in its log",
        )
        return _abort(p, now_s, Leaving.START_TIMEOUT)
    if p.phase in GOING:
        return replace(p, deadline_s=now_s + KILL_AGAIN_S), [Kill(p.id, p.incarnation)]
    if p.phase in (Phase.BACKOFF, Phase.FAILED):
        reopen: list[Action] = [OpenListeners(p.id)] if p.phase is Phase.FAILED else []
        p = to(p, Phase.WAITING, now_s, **BLANK, stamps=Stamps(wanted_s=now_s), restarts=p.restarts + 1)
        return p, reopen
    if p.phase is Phase.READY:
        deadline_s = _watchdog_deadline_s(p)
        if deadline_s is None or deadline_s > now_s:
            return replace(p, deadline_s=deadline_s), []
        p = replace(p, excuse=f"its loop was stuck for {in_words(p.spec.watchdog_s)}; the stacks are in its log")
        return _abort(p, now_s, Leaving.WATCHDOG)
    return replace(p, deadline_s=None), []


def taken_up(p: Process, now_s: float) -> Process:
    """Wanted once more, by whoever may want it: its budget goes on."""
    return to(p, Phase.WAITING, now_s, **BLANK, stamps=Stamps(wanted_s=now_s))


def _abort(p: Process, now_s: float, why: Leaving) -> Outcome:
    return to(
        p, Phase.STOPPING, now_s, leaving=why, deadline_s=now_s + ABORT_GRACE_S, reason=p.excuse, away=p.excuse
    ), [Abort(p.id, p.incarnation)]


def _watchdog_deadline_s(p: Process) -> float | None:
    if p.fed_s is None or not p.spec.watchdog_s:
        return None
    at_s = p.fed_s + p.spec.watchdog_s + (p.spec.shutdown_grace_s if p.leaving is Leaving.SLEEP else 0.0)
    # a second more or less does not matter to a long one, and 84 agents that became ready one by one share a wake-up
    return math.ceil(at_s) if p.spec.watchdog_s >= _LONG_WATCHDOG_S else at_s
