"""The node's end of the control conversation: frames on a unix socket, from the owner only.

What an operation does is not known here: `handle(conversation, operation, arguments)` answers, raises, awaits, or goes on
telling. A peer that does not read what it asked for is cut off before it costs memory.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast

from agentkit.errors import AgentkitError, BadRequest, CallError, ConfigError
from agentkit.observe.log import get_logger
from agentkit.wire.frames import FrameBuffer, pack
from startup.errors import Refused

log = get_logger("node.control")

#: Unread bytes after which a peer is cut off: a snapshot of 1,000 agents is under 2 MB.
MAX_UNREAD_BYTES: Final = 64 * 1024 * 1024
#: Connections that may wait to be accepted: every agent of a machine may come at the same time.
BACKLOG: Final = 4096

#: How long `close` waits for last words to be read, in seconds.
LAST_WORDS_S: Final = 1.0

_CREDENTIALS: Final = struct.Struct("3i")


class Telling:
    """What a handler returns to say: no last answer yet, events follow. `stop` is called when the conversation ends."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.stop = stop


class Asker(Protocol):
    """The other end of a conversation, as handlers see it."""

    def tell(self, id: int, event: Any) -> None:
        """One event of an operation that goes on telling."""
        ...

    def write(self, frame: bytes) -> None:
        """A frame that is packed already (the same event to many)."""
        ...


Handler: TypeAlias = Callable[[Asker, int, str, Mapping[str, Any]], Any]


class Guests(Protocol):
    """Other users who may ask for some things."""

    def uids(self) -> Container[int]: ...

    def handler(self, uid: int) -> Handler: ...


def _refused(asker: Asker, id: int, operation: str, arguments: Mapping[str, Any]) -> Any:  # noqa: ARG001 - a Handler
    raise Refused("forbidden", "this node is somebody else's")


class Conversation(asyncio.Protocol):
    """One connection. Handlers answer through it; `tell` sends an event."""

    def __init__(
        self,
        handle: Handler,
        on_made: Callable[[Conversation], None],
        on_lost: Callable[[Conversation], None],
        guests: Guests | None = None,
    ) -> None:
        self._handle = handle
        self._guests = guests
        self._on_made = on_made
        self._on_lost = on_lost
        self._buffer = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self._tellings: list[Telling] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's classes are its own
        self._on_made(self)
        sock = transport.get_extra_info("socket")
        _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid in (os.getuid(), 0):
            return
        if self._guests is not None and uid in self._guests.uids():
            self._handle = self._guests.handler(uid)
            return
        self._handle = _refused  # what it has sent already is not for us
        log.warning("control.stranger", uid=uid)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._buffer.feed(data):
                self._take(message)
        except CallError as exc:
            log.warning("control.garbage", error=str(exc))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        for telling in self._tellings:
            telling.stop()
        for task in self._tasks:
            task.cancel()
        self._on_lost(self)

    def tell(self, id: int, event: Any) -> None:
        """One event of an operation that goes on telling."""
        self.write(pack([id, "event", event]))

    def write(self, frame: bytes) -> None:
        """A frame that is packed already (the same event to many)."""
        if self._transport is None:
            return
        self._transport.write(frame)
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            log.warning("control.reader_too_slow", unread_bytes=self._transport.get_write_buffer_size())
            self.abort()

    def close(self) -> None:
        """Ends after what was written is out."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take(self, message: Any) -> None:
        match message:
            case [int(id), str(operation), dict(arguments)]:
                pass
            case _:
                raise BadRequest("a request is [id, operation, arguments]")
        try:
            result = self._handle(self, id, operation, arguments)
        except Exception as exc:  # noqa: BLE001 - whatever it is, the asker is told and the node lives on
            self._refuse(id, operation, exc)
            return
        if isinstance(result, Telling):
            self._tellings.append(result)
        elif isinstance(result, Awaitable):
            task = asyncio.ensure_future(self._answer_later(id, operation, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self.write(pack([id, "ok", result]))

    async def _answer_later(self, id: int, operation: str, result: Awaitable[Any]) -> None:
        try:
            self.write(pack([id, "ok", await result]))
        except Exception as exc:  # noqa: BLE001 - as in _take
            self._refuse(id, operation, exc)

    def _refuse(self, id: int, operation: str, exc: Exception) -> None:
        self.write(pack([id, "error", error_of(exc, operation)]))


def error_of(exc: Exception, operation: str) -> dict[str, Any]:
    """An exception as an error answer; what nobody foresaw is logged with its traceback."""
    retry_safe, details = False, {}
    if isinstance(exc, Refused):
        code, details = exc.code, exc.details
    elif isinstance(exc, CallError):
        code, details, retry_safe = exc.code, dict(exc.details), exc.retry_safe
    elif isinstance(exc, (ConfigError, KeyError, TypeError, ValueError)):
        code = "bad_request"
    else:
        code = "internal"
    if code == "internal" or not isinstance(exc, AgentkitError):
        log.error("control.failed", operation=operation, exc_info=exc)
    return {"code": code, "message": str(exc) or type(exc).__name__, "retry_safe": retry_safe, "details": details}


class ControlServer:
    """Listens at a path; a context for its conversations."""

    def __init__(self, path: Path, handle: Handler, guests: Guests | None = None, *, listener_fd: int = -1) -> None:
        """`listener_fd`: of the node before, where some may wait already; ours from now on. -1: a new one is made."""
        self._path = path
        self._listener_fd = listener_fd
        self._handle = handle
        self._guests = guests
        self._conversations: set[Conversation] = set()
        self._server: asyncio.AbstractServer | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def conversations(self) -> int:
        return len(self._conversations)

    async def start(self) -> None:
        """A socket that an earlier node left behind is replaced: whoever calls this holds the machine's lock."""
        sock = self._bound() if self._listener_fd < 0 else socket.socket(fileno=self._listener_fd)
        self._listener_fd = os.dup(sock.fileno())
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: Conversation(self._handle, self._conversations.add, self._forget, self._guests),
            sock=sock,
            backlog=BACKLOG,
        )

    def listener(self) -> int:
        """Another descriptor of the listening socket: the caller's to close."""
        return os.dup(self._listener_fd)

    def _bound(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(os.fspath(self._path))
            self._path.chmod(0o600)
        except OSError:
            sock.close()
            raise
        return sock

    async def close(self, *, is_handed_on: bool = False) -> None:
        """No new conversations; those that are open end after their last words. `is_handed_on`: somebody else listens there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._listener_fd >= 0:
            os.close(self._listener_fd)
            self._listener_fd = -1
        if not is_handed_on:
            self._path.unlink(missing_ok=True)
        for conversation in tuple(self._conversations):
            conversation.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                while self._conversations:
                    self._ended = asyncio.get_running_loop().create_future()
                    await self._ended
        for conversation in tuple(self._conversations):
            conversation.abort()

    def _forget(self, conversation: Conversation) -> None:
        self._conversations.discard(conversation)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
