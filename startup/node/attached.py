"""The agents' own conversations with their node: whose life counts, and what the node asks them over it.

An agent opens one when it has begun to serve, or needs a name before. The node's questions travel on it as events of number 0, which
no request of the agent's has; the answers come as requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from agentkit.directory.mesh import ANSWER, ASKED
from agentkit.names import AgentId, Incarnation
from agentkit.wire.frames import pack
from startup.errors import Refused
from startup.node.control_server import Asker, Telling
from startup.node.executor import Executor


class Attached:
    """Belongs to the running loop."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._agents: dict[Incarnation, Asker] = {}
        self._awaited: dict[Incarnation, list[asyncio.Future[None]]] = {}
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next = 1

    @property
    def operations(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        return {ANSWER: self._answer}

    @property
    def telling(self) -> Mapping[str, Callable[[Asker, int, Mapping[str, Any]], Telling]]:
        return {"attach": self._attach}

    def has(self, incarnation: Incarnation) -> bool:
        """Whether it can be asked."""
        return incarnation in self._agents

    async def ask(self, incarnation: Incarnation, question: Mapping[str, Any]) -> dict[str, Any]:
        """What the agent answers; nobody knows when, and one that is just about to attach is waited for. Refused: it says no."""
        if incarnation not in self._agents:
            await self._attaching(incarnation)
        number = self._next
        self._next += 1
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._agents[incarnation].tell(ASKED, {**question, "number": number})
            answer: dict[str, Any] = await future
            return answer
        finally:
            del self._asked[number]

    def _attach(self, asker: Asker, id: int, arguments: Mapping[str, Any]) -> Telling:
        """An agent asks whether its life is one that counts: the slot's own, or one of the two of a roll."""
        agent, incarnation = AgentId.parse(arguments["id"]), Incarnation(int(arguments["incarnation"]))
        if not self._executor.is_wanted(incarnation):
            running = self._executor.of(agent)
            now = f"incarnation {running.incarnation} runs" if running else "nothing of it shall run"
            raise Refused("gone", f"{agent} of incarnation {incarnation} is not wanted any more: {now}")
        asker.write(pack([id, "ok", {}]))
        self._agents[incarnation] = asker
        for future in self._awaited.get(incarnation, ()):
            if not future.done():
                future.set_result(None)
        return Telling(lambda: self._left(incarnation, asker))

    async def _attaching(self, incarnation: Incarnation) -> None:
        """Until it has come."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._awaited.setdefault(incarnation, [])
        waiting.append(future)
        try:
            await future
        finally:
            waiting.remove(future)
            if not waiting:
                self._awaited.pop(incarnation, None)

    def _left(self, incarnation: Incarnation, asker: Asker) -> None:
        if self._agents.get(incarnation) is asker:
            del self._agents[incarnation]

    def _answer(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        future = self._asked.get(int(arguments["number"]))
        if future is not None and not future.done():
            if "error" in arguments:
                future.set_exception(Refused("refused", str(arguments["error"])[:2000]))
            else:
                future.set_result(dict(arguments["result"]))
        return {}
