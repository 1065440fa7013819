"""Are programs that can't notify still there? The probe that found one ready is asked again, as its `health_check` says.

Agents tell by themselves, and are not asked; nor are programs that were ready by a line in their log, or after some time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeAlias

from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from startup.node.turns import Turns
from startup.plan import transitions
from startup.plan.phase import Phase
from startup.plan.process import Process
from startup.plan.words import in_words
from startup.spec.fleet import AgentSpec

log = get_logger("node.liveness")

#: Whether a program answers; it may take as many seconds as it is given.
Probe: TypeAlias = Callable[[float], Awaitable[bool]]


class Liveness:
    """Of one machine's programs. `probe_of`: how one is asked; None: it can't be."""

    def __init__(self, turns: Turns, probe_of: Callable[[AgentSpec], Probe | None]) -> None:
        self._turns = turns
        self._probe_of = probe_of
        self._watched: dict[AgentId, tuple[Incarnation, asyncio.Task[None]]] = {}

    def changed(self, processes: Iterable[Process], removed: Iterable[Process] = ()) -> None:
        """These are not what they were."""
        for p in processes:
            if p.spec.ready.notify:
                continue
            known = self._watched.get(p.id)
            if p.phase is not Phase.READY:
                self._stop(p.id)
            elif known is None or known[0] != p.incarnation:
                self._stop(p.id)
                self._start(p)
        for p in removed:
            self._stop(p.id)

    def close(self) -> None:
        for id in tuple(self._watched):
            self._stop(id)

    def _start(self, p: Process) -> None:
        probe = self._probe_of(p.spec)
        if probe is not None and p.spec.health_check.interval_s > 0:
            task = asyncio.get_running_loop().create_task(self._watch(p, probe), name=f"liveness of {p.id}")
            self._watched[p.id] = (p.incarnation, task)

    def _stop(self, id: AgentId) -> None:
        if known := self._watched.pop(id, None):
            known[1].cancel()

    async def _watch(self, p: Process, probe: Probe) -> None:
        """Until it has not answered `retries` times in a row."""
        policy = p.spec.health_check
        missed = 0
        while missed < max(1, policy.retries):
            await asyncio.sleep(policy.interval_s)
            missed = 0 if await probe(policy.timeout_s) else missed + 1
        why = f"it did not answer {missed} times in a row, each within {in_words(policy.timeout_s)}"
        log.warning("program.silent", agent=str(p.id), pid=p.pid, missed=missed)
        now_s = self._turns.now_s()
        self._turns.on(p.id, partial(transitions.unresponsive, why=why, now_s=now_s), incarnation=p.incarnation)
