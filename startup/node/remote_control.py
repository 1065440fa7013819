"""The control conversation for operators on other machines, over the inbox where nodes meet: the same operations and answers.

    control {operation, arguments}    -> [kind, value], as on the unix socket: "ok" and the result, or "error" and what is wrong;
                                         of an operation that goes on telling, a stream of the unix socket's frames

Only who holds an operator's key is heard; of others nothing is read, kept, or logged more than once a second. A reader that does
not keep up is cut off."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from agentkit.clock import now_s
from agentkit.errors import BadRequest, CallCancelled, CallError, DeadlineExceeded, Forbidden, Overloaded
from agentkit.observe.log import get_logger
from agentkit.security.roles import OPERATOR, Holder, forbidden, may
from agentkit.transport.peer import Inbound, Peer
from agentkit.wire import values
from agentkit.wire.frames import pack
from startup.node.control_server import Handler, Telling, error_of

log = get_logger("node.control")

#: The one method.
CONTROL: Final = "control"
#: Conversations that go on telling at once, of all operators: each costs what it has not read yet.
MAX_STREAMS: Final = 32
#: Unread bytes after which a reader is cut off.
MAX_UNREAD_BYTES: Final = 32 * 1024 * 1024
#: What an agent asks of the node of its own machine; it means nothing from elsewhere.
_OWN_AGENTS: Final = frozenset(
    {
        "answer",
        "attach",
        "config_taken",
        "lead",
        "lend",
        "report",
        "resign",
        "watch_config",
        "sleep",
        "asleep",
        "awake",
        "kept_events",
    }
)


class Answers(Protocol):
    """The inbox, as far as requests are answered (transport.inbox.Inbox)."""

    def answer(self, inbound: Inbound, value: object) -> None: ...
    def refuse(self, inbound: Inbound, error: CallError) -> None: ...
    def identity(self, peer: Peer) -> Holder | None: ...
    async def write(self, inbound: Inbound, value: object) -> None: ...


class RemoteControl:
    """Takes the `control` requests of an inbox. `refusal` says why the holder of a key is not heard; None: they are."""

    def __init__(self, handle: Handler, refusal: Callable[[Holder | None], CallError | None] | None = None) -> None:
        self.refused = 0  #: requests of those who may not
        self._handle = handle
        self._refusal = refusal or may_control
        self._complained_s = -1.0
        self._streams: set[_Stream] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def request(self, inbox: Answers, inbound: Inbound) -> None:
        error = self._refusal(inbox.identity(inbound.peer))
        if error is not None:
            self._complain(inbound, error)
            inbox.refuse(inbound, error)
            return
        try:
            said = values.unpack(inbound.body)
            operation, arguments = str(said["operation"]), dict(said["arguments"])
        except (values.Undecodable, KeyError, TypeError, ValueError) as exc:
            inbox.refuse(inbound, BadRequest(f"{CONTROL}: {exc!r}; {{operation, arguments}} is wanted"))
            return
        try:
            self._perform(inbox, inbound, operation, arguments)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the asker is told and the node lives on
            told = error_of(exc, operation)
            if inbound.window is None:
                inbox.answer(inbound, ["error", told])
            else:
                self._spawn(inbound, _say_no(inbox, inbound, told))

    def abandon(self, inbound: Inbound) -> None:
        """The operator has gone, or has enough."""
        if inbound.work is not None:
            inbound.work()

    async def close(self) -> None:
        """Ends what is under way."""
        for stream in tuple(self._streams):
            stream.stop()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _perform(self, inbox: Answers, inbound: Inbound, operation: str, arguments: Mapping[str, Any]) -> None:
        if operation in _OWN_AGENTS:
            raise BadRequest(f"{operation} is for agents of this machine")
        if inbound.window is not None:
            self._tell(inbox, inbound, operation, arguments)
            return
        result = self._handle(_Nobody(), 0, operation, arguments)
        if isinstance(result, Telling):
            result.stop()
            raise BadRequest(f"{operation} goes on telling: ask for a stream")
        if not isinstance(result, Awaitable):
            inbox.answer(inbound, ["ok", result])
            return
        self._spawn(inbound, _answer(inbox, inbound, operation, result))

    def _spawn(self, inbound: Inbound, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"control {inbound.id}")
        inbound.work = task.cancel
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, inbox: Answers, inbound: Inbound, operation: str, arguments: Mapping[str, Any]) -> None:
        if len(self._streams) >= MAX_STREAMS:
            raise Overloaded(
                f"{MAX_STREAMS} conversations of operators go on already", details={"retry_after_ms": 1000}
            )
        stream = _Stream(inbox, inbound, self._streams.discard)
        result = self._handle(stream, 0, operation, arguments)
        if not isinstance(result, Telling):
            if isinstance(result, Awaitable):
                asyncio.ensure_future(result).cancel()
            raise BadRequest(f"{operation} has one answer: ask without a stream")
        self._streams.add(stream)
        inbound.work = stream.stop
        stream.start(result)

    def _complain(self, inbound: Inbound, error: CallError) -> None:
        self.refused += 1
        if now_s() - self._complained_s >= 1.0:
            self._complained_s = now_s()
            log.warning("control.refused", caller=inbound.peer.instance, error=str(error), total=self.refused)


class _Nobody:
    """Hears the first words of an operation that should have been asked for as a stream."""

    def write(self, frame: bytes) -> None: ...
    def tell(self, id: int, event: Any) -> None: ...


class _Stream:
    """One operation that goes on telling: what it tells waits here for the reader's credit."""

    def __init__(self, inbox: Answers, inbound: Inbound, on_end: Callable[[_Stream], None]) -> None:
        self._inbox = inbox
        self._inbound = inbound
        self._on_end = on_end
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._come = asyncio.Event()
        self._telling: Telling | None = None
        self._is_stopped = False
        self._task: asyncio.Task[None] | None = None

    def start(self, telling: Telling) -> None:
        if self._is_stopped:  # its first words were too many already
            telling.stop()
            self._on_end(self)
            return
        self._telling = telling
        self._task = asyncio.get_running_loop().create_task(self._write(), name="control:stream")

    def tell(self, id: int, event: Any) -> None:
        self.write(pack([id, "event", event]))

    def write(self, frame: bytes) -> None:
        """A frame of the unix socket's conversation."""
        if self._is_stopped:
            return
        self._unread.append(frame)
        self._unread_bytes += len(frame)
        self._come.set()
        if self._unread_bytes > MAX_UNREAD_BYTES:
            log.warning("control.reader_too_slow", unread_bytes=self._unread_bytes)
            self.stop()
            self._inbox.refuse(
                self._inbound, Overloaded("what was told was not read", details={"retry_after_ms": 1000})
            )

    def stop(self) -> None:
        self._is_stopped = True
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.stop()
        if self._task is not None:
            self._task.cancel()
        self._unread.clear()
        self._on_end(self)

    async def _write(self) -> None:
        try:
            while True:
                await self._come.wait()
                self._come.clear()
                while self._unread:
                    frame = self._unread.popleft()
                    await self._inbox.write(self._inbound, frame)
                    self._unread_bytes -= len(frame)
        except CallCancelled:  # the reader has gone
            self.stop()
        except CallError as error:
            self._inbox.refuse(self._inbound, error)
            self.stop()


async def _answer(inbox: Answers, inbound: Inbound, operation: str, result: Awaitable[Any]) -> None:
    budget_s = None if inbound.budget_ms is None else inbound.budget_ms / 1000
    try:
        async with asyncio.timeout(budget_s) as limit:
            value = await result
        inbox.answer(inbound, ["ok", value])
    except Exception as exc:  # noqa: BLE001 - as in RemoteControl.request
        if isinstance(exc, TimeoutError) and limit.expired():
            inbox.refuse(inbound, DeadlineExceeded(f"{operation} was not done within {budget_s:g} s"))
        else:
            inbox.answer(inbound, ["error", error_of(exc, operation)])


async def _say_no(inbox: Answers, inbound: Inbound, told: Mapping[str, Any]) -> None:
    """In answer to who asked for a stream: the unix socket's last frame is all that there is in it."""
    with suppress(CallCancelled):
        await inbox.write(inbound, pack([0, "error", told]))
        inbox.answer(inbound, None)


def may_control(holder: Holder | None) -> CallError | None:
    """Why whoever holds this key is not heard; None: it is an operator. Without a key anybody could come by this address."""
    if holder is None:
        return Forbidden(
            "control from another machine needs the operator's key, and this connection has none: give the fleet's file "
            "`security: {keys: FOLDER}` (`agentkit keys init` makes them), or type the command on that machine"
        )
    return None if may(holder, OPERATOR) else forbidden("control of a node", OPERATOR, holder)
