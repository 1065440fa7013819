"""What a new node finds of the one before: processes and sockets that the zygote has, processes that outlived both, and what the
state directory remembers of them. After this the reconciler knows every slot that has, or had, a process.

Of two processes of one slot (the node died in the middle of a roll) the slot goes on with the one by which it was known, and the other
is ended (plan/swap.py)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Final

from agentkit.clock import SYSTEM_CLOCK
from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from startup.node import procinfo
from startup.node.executor import Executor
from startup.node.exits import Exit, ExitWatch
from startup.node.memory import beginnings, beside_of, process_of, without_process
from startup.node.running import Running
from startup.node.zygote.link import Inherited
from startup.plan import ending
from startup.plan import process as proc
from startup.plan.phase import ALIVE, Phase
from startup.plan.process import Process
from startup.plan.reconcile import Reconciler
from startup.plan.swap import NEXT, Role
from startup.spec.fleet import AgentSpec, AgentTarget, Fleet

log = get_logger("node.adoption")

#: Phases in which a slot's ports are bound, whether or not it has a process.
_HOLDING: Final = (ALIVE - {Phase.STOPPING}) | {Phase.WAITING, Phase.BACKOFF, Phase.HIBERNATED}


@dataclass(frozen=True, slots=True)
class Found:
    """How it went, for the log and `status`."""

    adopted: int = 0
    outlived: int = 0  #: processes whose zygote is gone, too
    ended: int = 0  #: processes that ended while there was no node
    asleep: int = 0
    #: agents whose ports nobody has held meanwhile: callers were refused, now they are bound again
    unheld: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


def adopt(
    core: Reconciler,
    executor: Executor,
    exits: ExitWatch,
    *,
    fleet: Fleet,
    remembered: Mapping[str, Mapping[str, Any]],
    inherited: Sequence[Inherited],
    ended: Sequence[Exit],
    node: str,
    now_s: float,
    random: Random,
) -> Found:
    """Tell the reconciler of every slot. `ended`: exits that the zygote told at once; `node`: our AGENTKIT_NODE."""
    specs = {spec.id: spec for spec in fleet.on(core.machine)}
    slots: dict[AgentId, Process] = {}
    besides: dict[AgentId, tuple[Process, Role]] = {}
    for key, facts in remembered.items():
        _remember(key, facts, specs, slots, besides)
    mains, second = _told_apart(executor, inherited, slots, besides)
    for running in mains.values():
        _adopt(core, executor, slots.get(running.id) or _unknown(running.id, specs), running, now_s)
    outlived = 0
    identity = Identity(node, {life: at for facts in remembered.values() for life, at in _beginnings(facts).items()})
    found_later, interrupted = _of_no_zygote(besides, identity, exits)
    second += found_later
    codes = {Incarnation(exit.incarnation): exit.code for exit in ended}
    gone: list[Process] = []
    sleepers: list[Process] = []
    for id, p in slots.items():
        if id in mains:
            continue
        if p.phase is Phase.HIBERNATED:
            sleepers.append(p)
        elif not _is_alive(p):
            core.remember(without_process(p))
        elif (found := _outlived(p, identity, exits)) is not None:
            _adopt(core, executor, p, found, now_s)
            outlived += 1
        else:
            gone.append(p)
            core.adopt(p, pid=p.pid or 0, incarnation=p.incarnation, phase=p.phase, now_s=now_s)
    kept = {*mains, *(id for id in slots if executor.of(id) is not None)}
    unheld = [id for id, p in slots.items() if id not in kept and _had_ports(p) and not executor.sockets.has(id)]
    _lie_down(core, executor, sleepers, now_s)
    for running, role in second:
        _adopt_beside(core, executor, running, role, now_s)
    for p in gone:
        code = codes.get(p.incarnation)
        core.on(p.id, lambda p, code=code: ending.exited(p, code, now_s, random), now_s, incarnation=p.incarnation)  # type: ignore[misc]
    for id in interrupted:
        core.replace(id, now_s)
    return Found(len(mains) + len(second), outlived, len(gone), len(sleepers), tuple(map(str, sorted(unheld))))


@dataclass(frozen=True, slots=True)
class Identity:
    """How a process is known again that no zygote vouches for: by pid and start time, which no other process ever has."""

    node: str  #: our AGENTKIT_NODE
    beginnings: Mapping[int, int]  #: incarnation -> start time, as remembered

    def still_there(self, pid: int, incarnation: int) -> int | None:
        """A pidfd of the process if the pid is still its own.

        Where no start time is remembered, its environment has to tell of this life: pids are used again, incarnations are not."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        began = self.beginnings.get(incarnation)
        if began is not None:
            is_same = procinfo.start_ticks(pid) == began
        else:
            marks = procinfo.environ(pid)
            is_same = marks.get("AGENTKIT_INCARNATION") == str(incarnation) and marks.get("AGENTKIT_NODE") == self.node
        if is_same:
            return pidfd
        os.close(pidfd)
        return None


def _beginnings(facts: Mapping[str, Any]) -> Mapping[int, int]:
    try:
        return beginnings(facts)
    except (KeyError, ValueError, TypeError):  # they tell nonsense, which is told where the process is looked for
        return {}


def _had_ports(p: Process) -> bool:
    return p.spec.sockets != "self" and bool(p.spec.port) and p.phase in _HOLDING


def _lie_down(core: Reconciler, executor: Executor, sleepers: Sequence[Process], now_s: float) -> None:
    """They sleep on. Where nobody kept their sockets, callers were refused until now: that is said."""
    unheard = [str(p.id) for p in sleepers if not executor.sockets.has(p.id)]
    if unheard:
        log.warning(
            "adoption.sleepers_unheard",
            agents=unheard[:20],
            count=len(unheard),
            why="their sockets went with their last node",
        )
    for p in sleepers:
        core.lie_down(p, now_s, SYSTEM_CLOCK.wall_s())


def _told_apart(
    executor: Executor,
    inherited: Sequence[Inherited],
    slots: Mapping[AgentId, Process],
    besides: dict[AgentId, tuple[Process, Role]],
) -> tuple[dict[AgentId, Running], list[tuple[Running, Role]]]:
    """The zygote's processes: those by which their slots are known, and the second ones. Takes what it finds out of `besides`."""
    mains: dict[AgentId, Running] = {}
    second: list[tuple[Running, Role]] = []
    for entry in inherited:
        id = AgentId.parse(entry.key)
        if entry.listeners:
            executor.sockets.take(id, entry.listeners)
        if entry.pid is None or entry.pidfd is None:
            continue
        running = Running(id, Incarnation(entry.incarnation), entry.pid, entry.pidfd)
        beside, role = besides.get(id, (None, None))
        if beside is None or beside.incarnation != running.incarnation:
            role = None
        else:
            del besides[id]
        is_strange = id in slots and slots[id].incarnation != running.incarnation and _is_alive(slots[id])
        if role is not None or is_strange or id in mains:
            second.append((running, role or Role.COMES))  # or it was forked in the last instant of the node before
        else:
            mains[id] = running
    return mains, second


def _of_no_zygote(
    besides: Mapping[AgentId, tuple[Process, Role]], identity: Identity, exits: ExitWatch
) -> tuple[list[tuple[Running, Role]], list[AgentId]]:
    """Of the second processes that the zygote does not have: those that outlived it, and slots whose successor ended with its node."""
    found: list[tuple[Running, Role]] = []
    interrupted = []
    for beside, role in besides.values():
        if beside.pid is not None and (running := _outlived(beside, identity, exits)) is not None:
            found.append((running, role))
        elif role in NEXT:
            interrupted.append(beside.id)
    return found, interrupted


def _remember(
    key: str,
    facts: Mapping[str, Any],
    specs: Mapping[AgentId, AgentSpec],
    slots: dict[AgentId, Process],
    besides: dict[AgentId, tuple[Process, Role]],
) -> None:
    p = _remembered(key, facts, specs)
    if p is None:
        return
    slots[p.id] = p
    try:
        beside = beside_of(facts, p)
    except (KeyError, ValueError, TypeError) as exc:
        log.warning("adoption.forgotten", agent=key, error=repr(exc))
    else:
        if beside is not None and _is_alive(p):
            besides[p.id] = beside


def _is_alive(p: Process) -> bool:
    return p.phase in ALIVE and p.pid is not None


def _outlived(p: Process, identity: Identity, exits: ExitWatch) -> Running | None:
    """A process whose zygote is gone, too, if it is still there; its end is seen from now on."""
    assert p.pid is not None
    pidfd = identity.still_there(p.pid, int(p.incarnation))
    if pidfd is None:
        return None
    exits.watch(key=str(p.id), incarnation=int(p.incarnation), pid=p.pid, pidfd=os.dup(pidfd))
    return Running(p.id, p.incarnation, p.pid, pidfd)


def _adopt(core: Reconciler, executor: Executor, p: Process, running: Running, now_s: float) -> None:
    known = p.incarnation == running.incarnation and p.phase in ALIVE
    phase = p.phase if known else Phase.FORKED
    executor.adopt(running)
    core.adopt(p, pid=running.pid, incarnation=running.incarnation, phase=phase, now_s=now_s)


def _adopt_beside(core: Reconciler, executor: Executor, running: Running, role: Role, now_s: float) -> None:
    executor.adopt(running)
    slot = core.processes[running.id]
    beside = replace(slot, pid=running.pid, incarnation=running.incarnation, swap=None)
    core.adopt_beside(beside, role, now_s)
    log.info("adoption.second", agent=str(running.id), pid=running.pid, role=role.value)


def _remembered(key: str, facts: Mapping[str, Any], specs: Mapping[AgentId, AgentSpec]) -> Process | None:
    id = AgentId.parse(key)
    try:
        return process_of(facts, specs.get(id) or _placeholder(id))
    except (KeyError, ValueError, TypeError) as exc:
        log.warning("adoption.forgotten", agent=key, error=repr(exc))
        return None


def _unknown(id: AgentId, specs: Mapping[AgentId, AgentSpec]) -> Process:
    return proc.new(specs.get(id) or _placeholder(id), 0.0)


def _placeholder(id: AgentId) -> AgentSpec:
    """For a process that the fleet does not know any more: enough to stop it."""
    return AgentSpec(id=id, group="", klass="", target=AgentTarget(), port=0)
