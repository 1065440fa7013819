"""Answers the health ports of all agents that sleep, on the node's loop: one small parser, no server for each.

What is asked has one line that matters, `GET /path HTTP/1.x`. One request per connection, at most MAX_CONNECTIONS in all (the oldest
makes room), each for at most CONNECTION_S and MAX_REQUEST_BYTES: slow or hostile clients cost a bounded amount."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Final, NamedTuple, cast

from agentkit.clock import wall_s
from agentkit.names import AgentId

MAX_CONNECTIONS: Final = 256
MAX_REQUEST_BYTES: Final = 16 * 1024
#: From accept to the last byte of the answer, in seconds.
CONNECTION_S: Final = 5.0
#: Connections taken of one socket in one turn of the loop.
_PER_TURN: Final = 32
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


class HealthServer:
    """Belongs to the running loop."""

    def __init__(self, answer: Callable[[AgentId, str], Answer]) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._open: dict[_Visit, None] = {}  # oldest first
        self._attaching: set[asyncio.Task[object]] = set()

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._open)

    def receive(self, id: AgentId, listener: socket.socket) -> bool:
        """Take who waits at the health port of `id`; False: no descriptor is left for them."""
        for _ in range(_PER_TURN):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return True
            except OSError:
                return False
            sock.setblocking(False)
            attaching = self._loop.create_task(self._attach(_Visit(self, id), sock), name=f"health of {id}")
            self._attaching.add(attaching)
            attaching.add_done_callback(self._attaching.discard)
        return True

    def close(self) -> None:
        for task in tuple(self._attaching):
            task.cancel()
        for visit in tuple(self._open):
            visit.abort()

    async def _attach(self, visit: _Visit, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: visit, sock)
        except (OSError, asyncio.CancelledError):
            sock.close()

    def came(self, visit: _Visit) -> None:
        self._open[visit] = None
        if len(self._open) > MAX_CONNECTIONS:
            next(iter(self._open)).abort()

    def went(self, visit: _Visit) -> None:
        self._open.pop(visit, None)

    def reply(self, id: AgentId, head: bytes) -> bytes:
        """The whole answer to a request that begins with `head`."""
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _packed(Answer(400, "text/plain", b"this is no HTTP request\n"))
        method, path = words[0], words[1].split(b"?", 1)[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return _packed(Answer(405, "text/plain", b"GET only\n"))
        return _packed(self._answer(id, path), with_body=method == b"GET")


class _Visit(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: HealthServer, id: AgentId) -> None:
        self._server, self._id = server, id
        self._data = b""
        self._is_answered = False
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's classes are its own
        self._deadline = asyncio.get_running_loop().call_later(CONNECTION_S, self.abort)
        self._server.came(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._is_answered:
            return
        self._data += data
        if b"\r\n\r\n" in self._data:
            self._is_answered = True
            self._transport.write(self._server.reply(self._id, self._data))
            self._transport.close()
        elif len(self._data) > MAX_REQUEST_BYTES:
            self.abort()

    def connection_lost(self, _: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._server.went(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _packed(answer: Answer, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\ndate: {formatdate(wall_s(), usegmt=True)}\r\n"
        f"connection: close\r\ncontent-type: {answer.content_type}\r\ncontent-length: {len(answer.body)}\r\n\r\n"
    )
    return head.encode("latin-1") + (answer.body if with_body else b"")
