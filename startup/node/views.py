"""What one node tells of the whole cluster: it asks the others over the mesh, all at once and never for long. Reading only.

    mesh.node {memory}         -> {node, revision, times_s, memory}: how my node and its agents are, now
    mesh.logs {agents, lines}  -> {agents, times_s}: pieces of my agents' logs
    mesh.events_seen {}        -> what my agents told of their events

A machine that does not answer within OTHERS_S is None in every answer: whoever asked says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, Protocol, TypeAlias

from agentkit.clock import SYSTEM_CLOCK
from agentkit.errors import BadRequest
from agentkit.names import AgentId
from startup.node import logread

#: How long other machines' answers are waited for, in seconds.
OTHERS_S: Final = 2.0
#: Agents named in one question about logs; lines told of each; characters in one answer, and of one agent. For more one asks again.
MAX_AGENTS: Final = 5_000
MAX_LINES: Final = 10_000
MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024
MAX_PIECE_BYTES: Final = 256 * 1024

Answer: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Any]]


class Here(Protocol):
    """This machine, as far as others are told of it (node.Node)."""

    def own(self) -> dict[str, Any]:
        """`node` and `revision`, as `status` tells them."""
        ...

    async def memory_mb(self) -> Mapping[str, float]:
        """PSS of this machine's agents, by id."""
        ...

    def log_of(self, id: AgentId) -> str:
        """Path of an agent's log; "" when it has none here."""
        ...

    def events_seen(self) -> dict[str, Any]:
        """What this machine's agents told of their events."""
        ...


class Others(Protocol):
    """The other machines (mesh.Mesh)."""

    def others(self) -> list[str]:
        """Those that are there as far as is known, and those that are missed."""
        ...

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any:
        """What one of them answers; None when it does not in time."""
        ...


class Views:
    """`operations` for those who ask this node, `answers` for other nodes."""

    def __init__(self, machine: str, here: Here, others: Others) -> None:
        self._machine = machine
        self._here = here
        self._others = others
        self.operations: dict[str, Answer] = {"logs": self._logs, "events_seen": self._events_seen}
        self.answers: dict[str, Answer] = {
            "mesh.node": self._own_node,
            "mesh.logs": self._own_logs,
            "mesh.events_seen": self._own_events,
        }

    async def nodes(self, *, memory: bool, but: Collection[str] | None) -> tuple[Mapping[str, float], dict[str, Any]]:
        """The PSS of every agent that was to be measured and could be, and what each other machine tells of its node.

        `but`: machines that are not asked; None: nobody is. `clock_s` in an answer: how far that machine's clock is ahead of
        this one's, true to half of what the question and its answer were on their way."""
        if but is None:
            return await self._memory(memory), {}
        asked = {machine: ("mesh.node", {"memory": memory}) for machine in self._others.others() if machine not in but}
        own, told = await asyncio.gather(self._memory(memory), self._ask_each(asked))
        found = dict(own)
        for answer in told.values():
            if answer is not None:
                found.update(answer.pop("memory"))
        return found, told

    # -- of the whole cluster

    async def _logs(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`agents`: {id: position, or null for its last `lines`}. By machine: `agents`: {id: piece}, `clock_s`.

        An agent that is not in the answer of its machine did not fit into it: it is asked for again."""
        by_machine: dict[str, dict[str, Any]] = {}
        for id, cursor in _asked(arguments).items():
            by_machine.setdefault(id.machine, {})[str(id)] = cursor
        lines = int(arguments.get("lines") or 0)
        own = by_machine.pop(self._machine, None)
        asked = {machine: ("mesh.logs", {"agents": ids, "lines": lines}) for machine, ids in by_machine.items()}
        machines = await self._ask_each(asked)
        if own is not None:
            machines[self._machine] = {**await self._own_logs({"agents": own, "lines": lines}), "clock_s": 0.0}
        return {"machines": machines}

    async def _events_seen(self, _: Mapping[str, Any]) -> dict[str, Any]:
        asked: dict[str, tuple[str, dict[str, Any]]] = {it: ("mesh.events_seen", {}) for it in self._others.others()}
        told = await self._ask_each(asked)
        return {"machines": {self._machine: self._here.events_seen(), **told}}

    async def _ask_each(self, asked: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
        answers = await asyncio.gather(*(self._ask(machine, *question) for machine, question in asked.items()))
        return dict(zip(asked, answers, strict=True))

    async def _ask(self, machine: str, method: str, said: Mapping[str, Any]) -> Any:
        asked_s = SYSTEM_CLOCK.wall_s()
        told = await self._others.ask(machine, method, said, OTHERS_S)
        if told is not None and "times_s" in told:
            # as NTP (RFC 5905, 8): what the other needed for its answer, which may be measuring every agent, does not count
            heard_s, answered_s = told.pop("times_s")
            told["clock_s"] = round(((heard_s - asked_s) + (answered_s - SYSTEM_CLOCK.wall_s())) / 2, 3)
        return told

    # -- of this machine

    async def _memory(self, measured: bool) -> Mapping[str, float]:
        return await self._here.memory_mb() if measured else {}

    async def _own_node(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        heard_s = SYSTEM_CLOCK.wall_s()
        memory = await self._memory(bool(asked.get("memory")))
        return {**self._here.own(), "memory": dict(memory), "times_s": [heard_s, SYSTEM_CLOCK.wall_s()]}

    async def _own_events(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return self._here.events_seen()

    async def _own_logs(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        heard_s = SYSTEM_CLOCK.wall_s()
        agents = {id: (self._here.log_of(id), cursor) for id, cursor in _asked(asked).items()}
        lines = min(int(asked.get("lines") or 0), MAX_LINES)
        # on a thread: a disk may be slow, and a node must answer
        pieces = await asyncio.to_thread(_read, agents, lines)
        return {"agents": pieces, "times_s": [heard_s, SYSTEM_CLOCK.wall_s()]}


def _read(agents: Mapping[AgentId, tuple[str, int | None]], lines: int) -> dict[str, dict[str, Any]]:
    """Pieces of as many of these logs as fit into one answer; at least one."""
    found: dict[str, dict[str, Any]] = {}
    left = MAX_ANSWER_BYTES
    for id, (path, cursor) in agents.items():
        if left < MAX_PIECE_BYTES:
            break
        if cursor is None:
            piece = logread.last(path, lines, MAX_PIECE_BYTES)
        else:
            piece = logread.after(path, cursor, MAX_PIECE_BYTES)
        left -= sum(len(line) + 1 for line in piece.lines)
        found[str(id)] = piece._asdict()
    return found


def _asked(arguments: Mapping[str, Any]) -> dict[AgentId, int | None]:
    agents = dict(arguments["agents"])
    if len(agents) > MAX_AGENTS:
        raise BadRequest(f"logs of {len(agents):,} agents in one question; {MAX_AGENTS:,} are answered")
    return {AgentId.parse(str(id)): None if cursor is None else int(cursor) for id, cursor in agents.items()}
