"""What a new node finds of the one before: processes and sockets that the zygote has, processes that outlived both, and what the
state directory remembers of them. After this the reconciler knows every slot that has, or had, a process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from startup.node import procinfo
from startup.node.exits import Exit, ExitWatch
from startup.node.hands import Hands, Running
from startup.node.memory import process_of, without_process
from startup.node.zygote_link import Inherited
from startup.plan import process as proc
from startup.plan.phase import ALIVE, Phase
from startup.plan.process import Process
from startup.plan.reconcile import Reconciler
from startup.spec.fleet import AgentSpec, AgentTarget, Fleet

log = get_logger("node.adoption")


@dataclass(frozen=True, slots=True)
class Found:
    """How it went, for the log and `status`."""

    adopted: int = 0
    outlived: int = 0  #: processes whose zygote is gone, too
    ended: int = 0  #: processes that ended while there was no node


def adopt(
    core: Reconciler,
    hands: Hands,
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
    slots = {
        id: p
        for id, p in ((AgentId.parse(key), _remembered(key, facts, specs)) for key, facts in remembered.items())
        if p
    }
    adopted: set[AgentId] = set()
    for entry in inherited:
        id = AgentId.parse(entry.key)
        if entry.listeners:
            hands.sockets.take(id, entry.listeners)
        if entry.pid is None or entry.pidfd is None:
            continue
        _adopt(
            core,
            hands,
            slots.get(id) or _unknown(id, specs),
            Running(id, Incarnation(entry.incarnation), entry.pid, entry.pidfd),
            now_s,
        )
        adopted.add(id)
    codes = {Incarnation(exit.incarnation): exit.code for exit in ended}
    outlived = gone = 0
    for id, p in slots.items():
        if id in adopted:
            continue
        if p.phase in ALIVE and p.pid is not None:
            pidfd = _still_there(p, node)
            if pidfd is not None:
                exits.watch(key=str(id), incarnation=int(p.incarnation), pid=p.pid, pidfd=os.dup(pidfd))
                _adopt(core, hands, p, Running(id, p.incarnation, p.pid, pidfd), now_s)
                outlived += 1
                continue
            gone += 1
            core.adopt(p, pid=p.pid, incarnation=p.incarnation, phase=p.phase, now_s=now_s)
            code = codes.get(p.incarnation)
            core.on(id, lambda p, code=code: proc.exited(p, code, now_s, random), now_s)  # type: ignore[misc]
        else:
            core.remember(without_process(p))
    return Found(len(adopted), outlived, gone)


def _adopt(core: Reconciler, hands: Hands, p: Process, running: Running, now_s: float) -> None:
    known = p.incarnation == running.incarnation and p.phase in ALIVE
    phase = p.phase if known else Phase.FORKED
    hands.adopt(running)
    core.adopt(p, pid=running.pid, incarnation=running.incarnation, phase=phase, now_s=now_s)


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


def _still_there(p: Process, node: str) -> int | None:
    """A pidfd of the process if its pid is still its own; pids are used again, incarnations are not."""
    assert p.pid is not None
    try:
        pidfd = os.pidfd_open(p.pid)
    except OSError:
        return None
    marks = procinfo.environ(p.pid)
    if marks.get("AGENTKIT_INCARNATION") == str(p.incarnation) and marks.get("AGENTKIT_NODE") == node:
        return pidfd
    os.close(pidfd)
    return None
