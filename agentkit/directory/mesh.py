"""The directory as a node gives it: one unix connection, one subscription per name that is used.

The node tells changes; nothing is asked twice. What was learnt is kept while the node is away, and the connection comes back
by itself. For an agent the same connection is how it learns that its node died: it attaches again to the next one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.directory.base import AgentRecord, unambiguous
from agentkit.errors import AgentUnknown, CallError, Unreachable, from_wire
from agentkit.names import AgentId
from agentkit.observe.log import get_logger
from agentkit.wire.frames import FrameBuffer, pack

log = get_logger("agentkit.directory")

#: Pause before the node is tried again, in seconds: first, then doubled up to the last.
RECONNECT_S: Final = (0.1, 5.0)
#: The number of events that are the node's own questions; requests count from 1.
ASKED: Final = 0
#: The operation that answers one.
ANSWER: Final = "answer"


class MeshDirectory:
    """Lookups through the node at `path`. Belongs to the running loop."""

    def __init__(
        self,
        path: str,
        *,
        here: str | None = None,
        on_connected: Callable[[MeshDirectory], Awaitable[None]] | None = None,
        on_records: Callable[[str, tuple[AgentRecord, ...]], None] = lambda *_: None,
        on_asked: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """`here`: the machine whose agents a bare name means first. `on_connected` runs after every (re)connect. `on_asked`: the
        node has a question; its `number` belongs to the answer (ANSWER)."""
        self.path = path
        self.version = 0
        self._here = here
        self._on_connected = on_connected
        self._on_records = on_records
        self._on_asked = on_asked
        self._records: dict[str, tuple[AgentRecord, ...]] = {}
        self._learnt: dict[str, asyncio.Event] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._feeds: dict[int, str] = {}  # request id -> name
        self._watched: dict[int, Callable[[Any], None]] = {}  # request id -> who hears its events
        self._next_id = 1
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._last_error = ""
        self._is_closed = False

    def start(self) -> None:
        """Begin to connect; lookups do it by themselves."""
        if self._task is None and not self._is_closed:
            self._task = asyncio.get_running_loop().create_task(self._stay_connected(), name="directory")

    async def lookup(self, name: str) -> tuple[AgentRecord, ...]:
        bare = bare_name(name)
        if bare not in self._records:
            await self._learn(bare)
        return self.cached(name)

    def cached(self, name: str) -> tuple[AgentRecord, ...]:
        """What is known of `name` without asking; AgentUnknown when it is unknown or ambiguous."""
        return unambiguous(
            name, self._records.get(bare_name(name), ()), here=self._here, stale=not self._connected.is_set()
        )

    async def names(self) -> tuple[AgentId, ...]:
        answer = await self.ask("names")
        return tuple(AgentId.parse(id) for id in answer["ids"])

    async def ask(self, operation: str, **arguments: Any) -> Any:
        """One operation of the control conversation; its CallError, or Unreachable when the node is away."""
        self.start()
        if self._writer is None and not await self._wait_connected():
            raise Unreachable(f"the node at {self.path} does not answer: {self._last_error}")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        id = self._send(operation, arguments)
        self._replies[id] = future
        try:
            return await future
        finally:
            self._replies.pop(id, None)

    def watch(self, operation: str, on_event: Callable[[Any], None], **arguments: Any) -> None:
        """Hear the events of an operation that goes on telling, for as long as this connection lasts: to be asked for in
        `on_connected`. Unreachable: it has gone already."""
        self._watched[self.say(operation, **arguments)] = on_event

    def say(self, operation: str, **arguments: Any) -> int:
        """Tell the node; its answer, if any, is not waited for. Unreachable: it is away. Returns the request's number."""
        if self._writer is None:
            raise Unreachable(f"the node at {self.path} went away")
        return self._send(operation, arguments)

    async def close(self) -> None:
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    # -- subscriptions ------------------------------------------------------------------------------------------------

    async def _learn(self, name: str) -> None:
        self.start()
        learnt = self._learnt.get(name)
        if learnt is None:
            learnt = self._learnt[name] = asyncio.Event()
            if self._writer is not None and not self._writer.is_closing():
                self._subscribe(name)
        if self._writer is None and not await self._wait_connected():
            raise AgentUnknown(
                f"{name}: never used before, and the directory is away ({self._last_error})",
                details={"name": name, "directory_stale": True},
            )
        await learnt.wait()

    async def _wait_connected(self) -> bool:
        """Whether the node answers, or does so within a moment."""
        # not wait_for: when both come in one turn it forgets that it was cancelled, and who is needed would go on falling asleep
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._connected.wait()
        return self._connected.is_set()

    def _subscribe(self, name: str) -> None:
        self._feeds[self._send("directory", {"name": name})] = name

    def _send(self, operation: str, arguments: dict[str, Any]) -> int:
        assert self._writer is not None
        if self._writer.is_closing():  # the connection failed under us; the conversation hears of it in a moment
            raise Unreachable(f"the node at {self.path} went away")
        id = self._next_id
        self._next_id += 1
        self._writer.write(pack([id, operation, arguments]))
        return id

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        pause_s = RECONNECT_S[0]
        while True:
            began_s = now_s()
            try:
                await self._converse()
            except (OSError, CallError, EOFError) as exc:
                self._last_error = str(exc) or type(exc).__name__
            except (ValueError, TypeError, KeyError, AttributeError) as exc:
                # a node that speaks otherwise than we do: not the end of looking for one that doesn't
                self._last_error = f"the node's words make no sense: {type(exc).__name__}: {exc}"
                log.error("directory.bad_message", path=self.path, exc_info=exc)
            finally:
                self._disconnect()
            if now_s() - began_s > 1.0:
                pause_s = RECONNECT_S[0]
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, RECONNECT_S[1])

    async def _converse(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(self.path)
        self._connected.set()
        for name in self._learnt:
            self._subscribe(name)
        greeting = asyncio.ensure_future(self._on_connected(self)) if self._on_connected else None
        buffer = FrameBuffer()
        try:
            while data := await reader.read(65536):
                for message in buffer.feed(data):
                    self._on_message(message)
        finally:
            if greeting is not None:
                greeting.cancel()
        raise EOFError("the node closed the connection")

    def _disconnect(self) -> None:
        self._connected.clear()
        self._feeds.clear()
        self._watched.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._replies.values():
            if not future.done():
                future.set_exception(Unreachable("the node went away"))

    def _on_message(self, message: Any) -> None:
        id, kind, content = message
        if id == ASKED:
            self._on_asked(content)
            return
        name = self._feeds.get(id)
        if name is not None and kind == "error":
            log.error("directory.refused", name=name, why=str(content)[:500])
            return
        if name is not None and kind == "event":
            records = tuple(AgentRecord.from_wire(record) for record in content["records"])
            self._records[name] = records
            self.version += 1
            self._learnt[name].set()
            self._on_records(name, records)
            return
        if (hear := self._watched.get(id)) is not None:
            if kind == "event":
                hear(content)
            else:
                log.error("directory.refused", why=str(content)[:500])
            return
        future = self._replies.get(id)
        if future is None or future.done():
            return
        if kind == "ok":
            future.set_result(content)
        elif kind == "error":
            future.set_exception(
                from_wire(
                    content["code"], content["message"], content.get("retry_safe", False), content.get("details", {})
                )
            )


def bare_name(name: str) -> str:
    """The agent's own name in `machine/name#slot`."""
    return name.rpartition("/")[2].partition("#")[0]
