"""Keeps the agents of this machine to their memory budget, by sending those to sleep that plan/budget.py chooses.

Without a budget nothing is measured and no timer runs. With one, every LOOK_EVERY_S the proportional memory of all processes is added
up, on a thread; above the budget agents are told to sleep as an operator would tell them, as deep as their files say. What that has
brought, the next look shows. When nobody is left who could sleep it is said once, until the budget is kept to again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from startup.node.executor import Executor
from startup.node.hibernation.operations import HibernationOperations
from startup.node.limits import rlimits
from startup.node.turns import Turns
from startup.plan import budget
from startup.plan.budget import Candidate, Use
from startup.plan.phase import ALIVE
from startup.plan.revision import Revision

log = get_logger("node.budget")

#: Looks are so far apart, in seconds, in whole multiples of it like those for limits (bounds.py), so that both are one wake-up.
LOOK_EVERY_S: Final = 10.0
#: After so many looks in a row that found nobody to send it is said: the first may only have seen who was called just before.
HELPLESS_LOOKS: Final = 2
_MIB: Final = 2**20


class MemoryBudget:
    """One for a node, on its loop."""

    def __init__(self, turns: Turns, executor: Executor, operations: HibernationOperations) -> None:
        #: Told of the agent that has the most memory and stays awake, once each time the budget can't be kept to.
        self.on_short: Callable[[AgentId, Incarnation, str], None] = lambda *_: None
        self._turns = turns
        self._core = turns.core
        self._executor = executor
        self._operations = operations
        self._loop = asyncio.get_running_loop()
        self._budget_bytes: int | None = None
        self._used_bytes: int | None = None  #: at the last look
        self._uses: dict[AgentId, Use] = {}
        self._sent = 0
        self._helpless = 0  #: looks in a row with nobody to send
        self._short = ""  #: who has the memory, when nobody can be sent
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None

    def revised(self, revision: Revision) -> None:
        """Keep to what this one says of this machine; what is going down is let go."""
        before = self._budget_bytes
        self._budget_bytes = None if revision.down else revision.fleet.memory_budget_of(self._core.machine)
        if self._budget_bytes != before:
            self._short, self._helpless = "", 0
        if self._budget_bytes is None:
            self._stop()
            self._uses.clear()
            self._used_bytes = None
        elif self._timer is None and self._looking is None:
            self._look_later()

    def facts(self) -> dict[str, Any] | None:
        """For `status`; None without a budget. `used_mb`: None before the first look."""
        if self._budget_bytes is None:
            return None
        return {
            "budget_mb": round(self._budget_bytes / _MIB, 2),
            "used_mb": None if self._used_bytes is None else round(self._used_bytes / _MIB, 2),
            "sent_to_sleep": self._sent,
            "short": self._short,
        }

    def close(self) -> None:
        self._budget_bytes = None
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._looking is not None:
            self._looking.cancel()

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(LOOK_EVERY_S - self._loop.time() % LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        self._looking = self._loop.create_task(self._look_once(), name="memory budget")
        self._looking.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("budget.look_failed", exc_info=failure)
        if self._budget_bytes is not None:
            self._look_later()

    async def _look_once(self) -> None:
        pids = {incarnation: running.pid for incarnation, running in self._executor.running.items()}
        found = await asyncio.to_thread(lambda: {key: rlimits.usage(pid).memory_bytes for key, pid in pids.items()})
        if self._budget_bytes is None or self._core.is_leaving:
            return
        self._used_bytes = sum(found.values())
        self._note(found)
        if self._used_bytes <= self._budget_bytes:
            self._short, self._helpless = "", 0
            return
        chosen = self._choose(self._used_bytes, self._budget_bytes)
        if chosen:
            await self._send(chosen)

    def _note(self, found: Mapping[Incarnation, int]) -> None:
        now_s, processes = self._turns.now_s(), self._core.processes
        self._uses = {
            id: use for id, use in self._uses.items() if id in processes
        }  # sleepers keep how much they were used
        for id, p in processes.items():
            if p.incarnation in found and p.phase in ALIVE:
                self._uses[id] = budget.looked(self._uses.get(id), p, found[p.incarnation], now_s)

    def _choose(self, used_bytes: int, budget_bytes: int) -> list[Candidate]:
        now_s, candidates, awake = self._turns.now_s(), [], []
        for id, p in self._core.processes.items():
            if p.phase not in ALIVE or (use := self._uses.get(id)) is None:
                continue
            match budget.candidate(p, use, now_s):
                case str(why):
                    awake.append((id, use.memory_bytes, why))
                case Candidate() as it:
                    candidates.append(it)
        chosen = budget.choose(used_bytes, budget_bytes, candidates)
        self._helpless = 0 if chosen else self._helpless + 1
        if self._helpless >= HELPLESS_LOOKS and awake:
            self._say_short(used_bytes, budget_bytes, awake)
        return chosen

    async def _send(self, chosen: list[Candidate]) -> None:
        answers = await self._operations.send({it.id: it.depth for it in chosen})
        now_s = self._turns.now_s()
        for it in chosen:
            why = answers[it.id]
            if not why:
                self._sent += 1
                log.info(
                    "budget.sent_to_sleep", agent=str(it.id), depth=it.depth, expected_mb=round(it.gain_bytes / _MIB, 1)
                )
                continue
            log.info("budget.refused", agent=str(it.id), why=why)
            if (use := self._uses.get(it.id)) is not None:
                self._uses[it.id] = budget.refused(use, why, now_s)

    def _say_short(self, used_bytes: int, budget_bytes: int, awake: list[tuple[AgentId, int, str]]) -> None:
        who = budget.in_words(awake)
        if not self._short:
            log.warning(
                "budget.short", used_mb=used_bytes // _MIB, budget_mb=budget_bytes // _MIB, awake=who,
                hint="raise memory_budget, let agents sleep (`hibernate: {depth: deep}`), or move some to another machine",
            )  # fmt: skip
            most = max(awake, key=lambda it: it[1])
            message = (
                f"this machine's memory budget of {budget_bytes // _MIB:,} MiB is overrun ({used_bytes // _MIB:,} MiB), and nobody can "
                f"be sent to sleep; this agent has the most: {most[1] // _MIB:,} MiB, {most[2]}"
            )
            self.on_short(most[0], self._core.processes[most[0]].incarnation, message)
        self._short = who
