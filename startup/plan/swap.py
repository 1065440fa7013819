"""Two processes of one slot, without I/O: how a restart replaces one that serves without a moment in which nobody does.

    waits -> comes -> (overlap)  goes -> no swap         ready beside the old one, takes its place; the old one drains
                   -> (handover) no swap                 parked; the old one drains and ends; only then does it start
    comes -> no swap                                     it ended before that: the old one serves on, untouched
    comes -> dismissed -> no swap                        not wanted any more

A slot's `Process` is the one that it is known by: its row, its directory entry, its restart budget. `swap.beside` is the other.
The successor itself knows which way it goes (the fleet file's `roll:`, else its class): one that says `parked` hands over.
What must never happen: two that take calls outside of an overlap's last step, none because of a successor that failed, `run`
or `@every` in both. The last is the gate's doing: `Release` when nothing of the other one is left, and not before.

Every function takes and returns the slot's `Process`; `settled` is asked after every change of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from agentkit.names import Incarnation
from startup.plan import transitions
from startup.plan.actions import Abort, Action, ForkBeside, Kill, Release, Terminate
from startup.plan.phase import ALIVE, Phase
from startup.plan.process import ASKED, Leaving, Outcome, Process
from startup.plan.row import Stamps
from startup.spec.fleet import AgentSpec, AgentTarget


class Role(StrEnum):
    """What the process beside is there for."""

    WAITS = "waits"  #: a successor that is not forked yet: a dependency is replaced first
    COMES = "comes"  #: a successor on its way to ready, or parked
    GOES = "goes"  #: a predecessor that drains; its successor serves
    DISMISSED = "dismissed"  #: it shall go, and nobody waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    role: Role
    beside: Process
    again: bool = False  #: another restart was asked for meanwhile: it begins when this one is over


#: Roles of a successor.
NEXT: Final = frozenset({Role.WAITS, Role.COMES})
#: Of what is decided about the process beside, that which is about the process and not about the slot.
_OWN: Final = (Terminate, Abort, Kill)


def rolls(old: AgentSpec, new: AgentSpec) -> bool:
    """Whether a process of `new` can take over from one of `old`: on the same sockets, handed down, by an agent that says when it is
    ready. A task's work is its `run`, of which there may be only one: it is stopped and started."""
    return (old.port, old.health_port) == (new.port, new.health_port) and all(
        isinstance(spec.target, AgentTarget)
        and spec.sockets == "adopt"
        and spec.kind == "service"
        and spec.ready.notify
        for spec in (old, new)
    )


def is_replaced(p: Process) -> bool:
    """Whether a successor comes that does not serve yet."""
    return p.swap is not None and p.swap.role in NEXT


def begun(p: Process, spec: AgentSpec, now_s: float) -> Process:
    """A ready process shall be replaced by one of `spec`; `forked_beside` follows when nothing is in the way."""
    successor = Process(spec=spec, phase=Phase.WAITING, since_s=now_s, stamps=Stamps(wanted_s=now_s))
    return replace(p, swap=Swap(role=Role.WAITS, beside=successor), roll_error="", refused="")


def forked_beside(p: Process, now_s: float) -> Outcome:
    """Nothing is in the successor's way."""
    assert p.swap is not None
    successor, _ = transitions.unblocked(p.swap.beside, now_s)
    return _with(p, beside=successor, role=Role.COMES), [ForkBeside(p.id)]


def ordered(p: Process, incarnation: Incarnation, key: str = "") -> Process:
    """The successor's fork is on order."""
    return p if p.swap is None else _with(p, beside=transitions.ordered(p.swap.beside, incarnation, key))


def restarted(p: Process, spec: AgentSpec, now_s: float) -> Outcome:
    """An operator wants a process of `spec` that begins after this moment, whatever is under way."""
    if p.swap is None:
        if p.phase is Phase.READY and rolls(p.spec, spec):
            return begun(p, spec, now_s), []
        return transitions.stop(p, now_s, Leaving.RESTART)
    role = p.swap.role
    if p.phase is not Phase.READY:  # its successor may have been imported before this moment: it is not waited for
        actions: list[Action] = []
        if role in NEXT:
            p, actions = _dismissed(p, now_s)
        stopped, more = transitions.stop(p, now_s, Leaving.RESTART)
        return stopped, [*actions, *more]
    match role:
        case Role.WAITS:
            return p, []
        case Role.COMES:
            return dismissed(p, now_s, again=True)
        case _:
            return _with(p, again=True), []


def restarted_by_rule(p: Process, spec: AgentSpec, why: str, now_s: float) -> Outcome:
    """As `process.restarted_by_rule`; one that is being replaced is beginning anew already."""
    if p.swap is not None or not rolls(p.spec, spec):
        return transitions.restarted_by_rule(p, why, now_s) if p.swap is None else (p, [])
    after, _ = transitions.restarted_by_rule(p, why, now_s)
    if after is p:
        return p, []
    spent = replace(p, failures=after.failures, restarts=after.restarts, last_error=after.last_error)
    return begun(spent, spec, now_s), []


def dismissed(p: Process, now_s: float, *, again: bool = False) -> Outcome:
    """The successor is not wanted any more; `again`: but another is."""
    p, actions = _dismissed(p, now_s)
    return (_with(p, again=again) if p.swap is not None else p), actions


def changed_beside(p: Process, outcome: Process | Outcome) -> Outcome:
    """What happened to the process beside, told by transitions.py or ending.py; nothing of it concerns sockets or budget of the slot."""
    beside, actions = outcome if isinstance(outcome, tuple) else (outcome, [])
    return _with(p, beside=beside), _own(actions)


def due(p: Process, now_s: float) -> Outcome:
    """`process.due` for both."""
    p, actions = transitions.due(p, now_s)
    if p.swap is None or p.phase not in ALIVE:
        return p, actions
    beside, more = transitions.due(p.swap.beside, now_s)
    return (p, actions) if beside is p.swap.beside else (_with(p, beside=beside), [*actions, *_own(more)])


def settled(before: Process, p: Process, actions: list[Action], now_s: float) -> Outcome:
    """What follows from where the two are. `before`: the slot before what has just happened, which asked for `actions`."""
    if p.swap is None:
        return p, actions
    role, beside = p.swap.role, p.swap.beside
    if p.phase not in ALIVE:
        # sockets and budget are the slot's, and somebody is left to hold it: what was said of them does not count
        return (replace(p, swap=None), actions) if role is Role.WAITS else _left_to(before, p, now_s)
    if role is not Role.WAITS and beside.phase not in ALIVE:
        after, more = _alone(p, now_s)
    elif role in NEXT and _is_leaving_for_good(p):
        after, more = _dismissed(p, now_s)
    elif role is Role.COMES and beside.phase is Phase.READY:
        after, more = _taken_over(p, now_s)
    elif role is Role.COMES and beside.phase is Phase.PARKED and p.phase is Phase.READY:
        after, told = transitions.stop(p, now_s, Leaving.RESTART)
        after = replace(after, phase=Phase.DRAINING)
        more = [replace(found, successor="waits") for found in told if isinstance(found, Terminate)]
    else:
        return p, actions
    return after, [*actions, *more]


def adopted(p: Process, beside: Process, role: Role, now_s: float) -> Outcome:
    """A new node finds two processes of one slot: `p`, by which the slot is known, and another, whose gate went with the old node.

    A predecessor is told to go once more. A successor that was not known to serve is sent away, and another one is begun."""
    beside, actions = transitions.stop(replace(beside, phase=Phase.READY), now_s, Leaving.STOP)
    over = role is Role.GOES
    swap = Swap(role=Role.GOES if over else Role.DISMISSED, beside=beside, again=not over and p.phase is Phase.READY)
    return replace(p, swap=swap), actions


def predecessor_of(p: Process) -> Incarnation:
    """Of the process that drains beside its successor; 0: there is none."""
    return p.swap.beside.incarnation if p.swap is not None and p.swap.role is Role.GOES else Incarnation(0)


def in_words(p: Process) -> str:
    """What goes on in a slot with two processes, for people."""
    if p.swap is None:
        return ""
    other = f"pid {p.swap.beside.pid}" if p.swap.beside.pid else "about to be forked"
    match p.swap.role:
        case Role.WAITS:
            return "to be replaced, after what it depends on"
        case Role.COMES:
            return f"its successor ({other}) is {p.swap.beside.phase.value}"
        case Role.GOES:
            return f"its predecessor ({other}) drains"
        case Role.DISMISSED:
            return f"a successor ({other}) is sent away"


def _is_leaving_for_good(p: Process) -> bool:
    return p.leaving in (Leaving.STOP, Leaving.QUARANTINE) or (
        p.leaving is Leaving.RESTART and p.phase is Phase.STOPPING
    )


def _taken_over(p: Process, now_s: float) -> Outcome:
    """Overlap: the successor serves. From here on the slot is known by it."""
    assert p.swap is not None
    old, told = transitions.stop(replace(p, swap=None), now_s, Leaving.RESTART)
    swap = Swap(role=Role.GOES, beside=old, again=p.swap.again)
    actions: list[Action] = [replace(found, successor="serves") for found in told if isinstance(found, Terminate)]
    return replace(_heir(p, p), swap=swap), actions


def _left_to(before: Process, p: Process, now_s: float) -> Outcome:
    """The slot's own process has ended: the one beside is all that there is. A predecessor, or whoever was sent away, holds the slot
    until it has ended, too; then counts what became of `p`."""
    assert p.swap is not None
    heir = _heir(before, p)
    if p.swap.role is Role.COMES:
        if heir.phase is Phase.PARKED:
            heir = replace(heir, phase=Phase.STARTING, since_s=now_s, deadline_s=now_s + heir.spec.start_timeout_s)
        return heir, [Release(heir.id, heir.incarnation)]
    if before.leaving in ASKED:
        return replace(heir, leaving=before.leaving, reason=before.reason), []
    return replace(heir, leaving=Leaving.ITSELF, excuse=p.last_error or p.last_exit), []


def _heir(before: Process, p: Process) -> Process:
    """The process beside `p` as the slot's own: the budget goes with the slot, and so does what is told of its past."""
    assert p.swap is not None
    return replace(
        p.swap.beside,
        failures=before.failures,
        streak=before.streak,
        restarts=before.restarts,
        last_exit=p.last_exit,
        last_error=p.last_error,
        swap=None,
    )


def _alone(p: Process, now_s: float) -> Outcome:
    """Nothing is left of the process beside."""
    assert p.swap is not None
    role, beside, again = p.swap.role, p.swap.beside, p.swap.again
    p = replace(p, swap=None)
    actions: list[Action] = []
    if role is Role.GOES:
        actions.append(Release(p.id, p.incarnation))
    elif role is Role.COMES and p.phase is Phase.READY:
        p = replace(p, roll_error=beside.last_error or beside.last_exit, refused=beside.spec.digest())
    if again and p.phase is Phase.READY:
        p = begun(p, p.spec if role is Role.GOES else beside.spec, now_s)
    return p, actions


def _dismissed(p: Process, now_s: float) -> Outcome:
    assert p.swap is not None
    if p.swap.role is Role.WAITS:
        return replace(p, swap=None), []
    beside, actions = transitions.stop(p.swap.beside, now_s, Leaving.STOP)
    return _with(p, beside=beside, role=Role.DISMISSED), _own(actions)


def _with(p: Process, **changes: object) -> Process:
    assert p.swap is not None
    return replace(p, swap=replace(p.swap, **changes))  # type: ignore[arg-type]


def _own(actions: list[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, _OWN)]
