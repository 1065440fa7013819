"""One slot's process without I/O: events in, a new `Process` and actions out.

    pending -> waiting <-> skipped            wanted; blocked; a cause makes it hopeless, and is gone again
    waiting -> forked -> importing -> starting -> ready          unblocked, then what the process says of itself
    any alive -> stopping -> stopped | waiting | (failure)       told to go, or going by itself
    failure -> waiting (at once) | backoff -> waiting | failed -> waiting (slowly)
    a task's exit 0 -> completed; an agent's EXIT_ASLEEP -> hibernated -> waiting (sleep_transitions.py)

Times are monotonic seconds. Each function asserts nothing about its source phase that a race could break: an event that
no longer fits (READY from a process that was told to go) leaves the process as it is.

Covered here: phases, deadlines, the restart budget. Not here: when a slot is wanted or unblocked (reconcile.py), and two processes
of one slot (swap.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agentkit.agent.orders import EXIT_ASLEEP
from agentkit.names import AgentId, Incarnation
from startup.plan.actions import (
    Abort,
    Action,
    CloseListeners,
    Fork,
    Kill,
    LieDown,
    OpenListeners,
    ProbeReady,
    Terminate,
)
from startup.plan.phase import ALIVE, COMING_UP, GOING, Health, Phase
from startup.plan.row import Stamps
from startup.plan.sleep_record import Sleep
from startup.plan.words import as_cause, describe_exit, in_words
from startup.spec.fleet import AgentSpec, AgentTarget

if TYPE_CHECKING:
    from startup.plan.swap import Swap

#: How long an aborted process may write its stacks before it is killed, seconds.
ABORT_GRACE_S: Final = 2.0
#: A killed process that is still there (in the kernel's uninterruptible sleep) is killed again this often, seconds.
KILL_AGAIN_S: Final = 5.0
#: From here on a watchdog's deadline is a whole second.
_LONG_WATCHDOG_S: Final = 10.0


class Leaving(StrEnum):
    """Why a process is on its way out, or nothing."""

    NO = ""
    STOP = "stopped"  #: it is not wanted any more
    RESTART = "restarted"  #: it shall come again: asked by an operator, or its spec has changed
    START_TIMEOUT = "start timeout"
    WATCHDOG = "watchdog"
    QUARANTINE = "quarantined"  #: a rule of `on_error` took it out of service
    LIMIT = "over its limit"
    SILENT = "silent"  #: a program that does not answer its probe any more
    ITSELF = "left by itself"  #: it said STOPPING=1 unasked
    SLEEP = "falling asleep"  #: it asked, and may; still ready for everybody else


#: We asked, so its exit is no failure.
ASKED: Final = frozenset({Leaving.STOP, Leaving.RESTART, Leaving.QUARANTINE})
#: How the reason of a quarantined process begins.
QUARANTINED: Final = "quarantined: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Everything known of one slot on this machine. `phase`, `health`, `because`, `reason` read like a row's."""

    spec: AgentSpec
    digest: str = ""  #: of the spec that an adopted process was started with; empty: that of `spec`
    phase: Phase = Phase.PENDING
    since_s: float = 0.0  #: when this phase began
    deadline_s: float | None = None  #: when `due` has something to say; what, depends on the phase
    leaving: Leaving = Leaving.NO
    pid: int | None = None
    incarnation: Incarnation = Incarnation(0)
    key: str = ""  #: fingerprint of the key that it serves with; "": no encryption
    health: Health = Health.OK
    health_reason: str = ""
    trouble: str = ""  #: ready, but a required dependency is gone: shown as degraded
    reason: str = ""
    waiting_for: tuple[str, ...] = ()
    because: str = ""
    slowest_dependency: str = ""
    stamps: Stamps = field(default_factory=Stamps)  #: monotonic here; rows hold wall-clock time
    fed_s: float | None = None  #: the last WATCHDOG=1; None: it never fed one, so none is expected
    failures: tuple[float, ...] = ()  #: when it failed and was started again, within the window
    streak: int = 0  #: failures in a row, without a stable period between them
    restarts: int = 0  #: by the budget, since the slot is wanted
    last_exit: str = ""
    last_error: str = ""
    away: str = ""  #: it was up, is not, and shall come again: why
    excuse: str = ""  #: what it, or we, said of its failing, before it was gone
    status_text: str = ""
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    traits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    requests: int = 0
    errors: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)  #: how what it remembers is kept, as it told last
    swap: Swap | None = None  #: another process of this slot, and what it is there for
    light_sleep: Mapping[str, Any] = field(default_factory=dict)  #: light_sleep.read: what it says of it
    roll_error: str = ""  #: why its last successor did not become ready, and it serves on
    rolled: int = 0  #: number of the revision whose rollout it has come through; below zero: in which it failed
    takes_config: bool = False  #: its class has `on_config`
    base: str = ""  #: as `digest`, without the config
    offered: AgentSpec | None = None  #: whose config it was told, and has not answered for yet
    config_refused: str = ""  #: digest of the spec whose config it did not take
    sleep: Sleep | None = None  #: of its sleeps, once it slept
    refused: str = ""  #: digest of the spec that no successor could be had for, in this revision

    @property
    def id(self) -> AgentId:
        return self.spec.id

    @property
    def is_quarantined(self) -> bool:
        """Taken out of service by a rule, or on its way there."""
        return self.leaving is Leaving.QUARANTINE or (
            self.phase is Phase.FAILED and self.deadline_s is None and self.reason.startswith(QUARANTINED)
        )


Outcome: TypeAlias = tuple[Process, list[Action]]

#: What is no longer true once a slot is looked at anew.
_BLANK: Final[Mapping[str, Any]] = {"reason": "", "because": "", "waiting_for": ()}
#: What only the process itself can say, so a new one has not said it yet.
_UNTOLD: Final[Mapping[str, Any]] = {
    "pid": None, "health": Health.OK, "health_reason": "", "status_text": "", "fed_s": None, "light_sleep": {},
    "excuse": "", "digest": "", "roll_error": "", "refused": "", "takes_config": False, "base": "", "offered": None, "config_refused": "",
}  # fmt: skip


def new(spec: AgentSpec, now_s: float) -> Process:
    """A slot that was just heard of."""
    return Process(spec=spec, since_s=now_s)


def runs(p: Process, spec: AgentSpec) -> bool:
    """Whether its process is what `spec` asks for. Compares values first: a digest costs 0.1 ms, and 1,000 agents
    have one each."""
    if not p.digest and (spec is p.spec or spec == p.spec):
        return True
    return (p.digest or p.spec.digest()) == spec.digest()


def wanted(p: Process, now_s: float) -> Outcome:
    """It shall run: hold its ports from now on, so that nobody takes them while it waits."""
    p = _to(
        p, Phase.WAITING, now_s, **_BLANK, failures=(), streak=0, restarts=0, away="", stamps=Stamps(wanted_s=now_s)
    )
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
    p = _to(p, Phase.FORKED, now_s, **_BLANK, **_UNTOLD, stamps=stamps, slowest_dependency=slowest_dependency)
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


def fork_failed(p: Process, reason: str, now_s: float, random: Random) -> Outcome:
    """There is no process: a port is taken, the zygote refuses, memory is short."""
    p = replace(p, pid=None)
    if p.leaving in ASKED:
        return _left(p, now_s)
    return _failed(p, reason, now_s, random)


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
    p = _to(
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
    return _to(p, Phase.STOPPING, now_s, leaving=Leaving.ITSELF, deadline_s=now_s + p.spec.shutdown_grace_s)


def stop(p: Process, now_s: float, why: Leaving) -> Outcome:
    """Tell it to go (SIGTERM, grace, SIGKILL); a slot without a process is stopped, or waiting again, at once."""
    if p.phase not in ALIVE:
        return _left(replace(p, leaving=why), now_s)
    if p.phase in GOING:
        # on its way already, for whatever reason: what counts is what shall be afterwards. An abort's short limit stays
        return replace(p, leaving=why), []
    p = _to(p, Phase.STOPPING, now_s, leaving=why, deadline_s=now_s + p.spec.shutdown_grace_s)
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
    return _left(replace(p, reason=QUARANTINED + why, leaving=Leaving.QUARANTINE), now_s)


def forgiven(p: Process) -> Process:
    """An operator looked at it: the budget starts anew."""
    return replace(p, failures=(), streak=0)


def over_limit(p: Process, why: str, now_s: float) -> Outcome:
    """It uses more than it may: killed, and started again within its budget. One that goes anyway has its grace period."""
    if p.phase not in ALIVE or p.phase in GOING:
        return p, []
    p = _to(
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


def gone(p: Process, now_s: float) -> Process:
    """It has ended; what it left behind is still being cleared away. `exited` follows."""
    if p.phase not in ALIVE:
        return p
    if p.leaving is Leaving.SLEEP:
        return replace(p, pid=None, deadline_s=None)  # a moment more, and it sleeps: nobody need know of this one
    phase = Phase.DRAINING if p.phase is Phase.DRAINING else Phase.STOPPING  # draining: its successor is next
    return _to(p, phase, now_s, leaving=p.leaving, pid=None)


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
        return _left(p, now_s)
    if code == 0 and p.spec.kind == "task" and p.leaving in (Leaving.NO, Leaving.ITSELF):
        return _to(p, Phase.COMPLETED, now_s), [CloseListeners(p.id)]
    if code == 0:
        how += ", unasked; write `kind: task` if it is meant to end"
    return _failed(p, over or p.excuse or how, now_s, random)


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
        p = _to(p, Phase.WAITING, now_s, **_BLANK, stamps=Stamps(wanted_s=now_s), restarts=p.restarts + 1)
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
    return _to(p, Phase.WAITING, now_s, **_BLANK, stamps=Stamps(wanted_s=now_s))


def _fallen_asleep(p: Process, now_s: float) -> Outcome:
    """Nothing of it is left, as it wanted."""
    due_s = p.sleep.due_s if p.sleep else None
    p = _to(
        p,
        Phase.HIBERNATED,
        now_s,
        **_BLANK,
        pid=None,
        status_text="",
        fed_s=None,
        deadline_s=due_s,
        sleep=p.sleep or Sleep(),
    )
    return p, [LieDown(p.id)]


def _left(p: Process, now_s: float) -> Outcome:
    """It is gone as we asked."""
    if p.leaving is Leaving.RESTART:
        # what the others of its group are restarted for is said while it waits, too
        facts = {**_BLANK, "reason": f"restarted {p.away}" if p.away else "", "away": p.away or "stopped to begin anew"}
        return _to(p, Phase.WAITING, now_s, **facts, stamps=Stamps(wanted_s=now_s)), [OpenListeners(p.id)]
    if p.leaving is Leaving.QUARANTINE:
        return _to(p, Phase.FAILED, now_s, because="", waiting_for=()), [CloseListeners(p.id)]
    return _to(p, Phase.STOPPED, now_s, **_BLANK, away=""), [CloseListeners(p.id)]


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
        p = _to(p, Phase.FAILED, now_s, reason=reason, failures=recent, streak=streak, deadline_s=retry_s)
        return p, [CloseListeners(p.id)]
    recent = (*recent, now_s)
    if streak == 1:
        p = _to(p, Phase.WAITING, now_s, reason=reason, failures=recent, streak=1, stamps=Stamps(wanted_s=now_s))
        return replace(p, restarts=p.restarts + 1), []
    delay_s = min(policy.delay_s * policy.factor ** (streak - 2), policy.max_delay_s)
    delay_s *= 1 + policy.jitter * (2 * random.random() - 1)
    return _to(p, Phase.BACKOFF, now_s, reason=reason, failures=recent, streak=streak, deadline_s=now_s + delay_s), []


def _abort(p: Process, now_s: float, why: Leaving) -> Outcome:
    return _to(
        p, Phase.STOPPING, now_s, leaving=why, deadline_s=now_s + ABORT_GRACE_S, reason=p.excuse, away=p.excuse
    ), [Abort(p.id, p.incarnation)]


def _watchdog_deadline_s(p: Process) -> float | None:
    if p.fed_s is None or not p.spec.watchdog_s:
        return None
    at_s = p.fed_s + p.spec.watchdog_s + (p.spec.shutdown_grace_s if p.leaving is Leaving.SLEEP else 0.0)
    # a second more or less does not matter to a long one, and 84 agents that became ready one by one share a wake-up
    return math.ceil(at_s) if p.spec.watchdog_s >= _LONG_WATCHDOG_S else at_s


def _to(p: Process, phase: Phase, now_s: float, **facts: Any) -> Process:
    """The one door to another phase: what belonged to the last one (deadline, reason to leave, trouble) does not
    come along."""
    facts = {"deadline_s": None, "leaving": Leaving.NO, "trouble": "", **facts}
    return replace(p, phase=phase, since_s=now_s, **facts)
