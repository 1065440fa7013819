"""The CLI's side of the conversation with a node: find one, ask it, listen to it. Blocking, without ZeroMQ, loop or pydantic.

    node = find_node()
    with NodeConnection.connect(node.control) as connection:
        print(connection.ask("hello"))
        for event in connection.events("watch"):
            ...

A connection does one thing at a time and belongs to one thread; open another for another. `Talk` is what commands need of one,
`Door` is where one is opened: a unix socket here (`UnixDoor`), others elsewhere (startup/remote.py, startup/machines/).
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from agentkit.errors import BY_CODE, NoNode, from_wire
from agentkit.wire.frames import FrameBuffer, pack
from startup.errors import Conflict, NodeLost, Refused

#: How long one question may take, in seconds: a node answers at once; this is for one that is stuck or stopped.
ANSWER_WITHIN_S: Final = 15.0


#: Asking these twice changes nothing.
_LOOKS: Final = frozenset({"hello", "status", "names", "revision", "revisions", "logs", "errors", "ping"})


class Talk(Protocol):
    """One open conversation with a node, whatever it travels over."""

    def ask(self, operation: str, **arguments: Any) -> Any:
        """As NodeConnection.ask."""
        ...

    def events(self, operation: str, *, tick_s: float | None = None, **arguments: Any) -> Iterator[Any]:
        """As NodeConnection.events."""
        ...

    def descriptors(self) -> tuple[int, ...]:
        """For poll: one of them is readable when something may have come that `has_arrived` does not tell yet."""
        ...

    def has_arrived(self) -> bool:
        """Whether something has come already; ask before polling."""
        ...

    def is_silent(self) -> bool | None:
        """Whether the other end must be taken for lost though nobody said so: ask once a second. None: it would be told at once."""
        ...

    def close(self) -> None: ...


class Door(Protocol):
    """Where a node can be spoken with."""

    @property
    def place(self) -> str:
        """For messages: a path, or an address."""
        ...

    def open(self, *, timeout_s: float = ANSWER_WITHIN_S) -> Talk:
        """A new conversation, whose answers may take `timeout_s`. NoNode says why there is none."""
        ...

    def is_gone(self) -> bool:
        """Whether the node has taken its door away, as one does that was told to stop."""
        ...


@dataclass(frozen=True, slots=True)
class UnixDoor:
    """A node's control socket on this machine."""

    place: str

    def open(self, *, timeout_s: float = ANSWER_WITHIN_S) -> NodeConnection:
        return NodeConnection.connect(self.place, timeout_s=timeout_s)

    def is_gone(self) -> bool:
        return not os.path.exists(self.place)  # noqa: PTH110 - pathlib's import is not free


class NodeConnection:
    """One open conversation. A context manager; `close` ends it."""

    def __init__(self, sock: socket.socket, *, timeout_s: float = ANSWER_WITHIN_S, path: str = "") -> None:
        self._socket = sock
        self._path = path
        self._timeout_s = timeout_s
        self._buffer = FrameBuffer()
        self._arrived: deque[Any] = deque()
        self._last_id = 0

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, timeout_s: float = ANSWER_WITHIN_S) -> Self:
        """NoNode when nobody listens at `path`. `timeout_s`: how long an answer may take."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(os.fspath(path))
        except OSError as exc:
            sock.close()
            raise NoNode(f"no node answers at {os.fspath(path)}: {exc.strerror or exc}") from exc
        return cls(sock, timeout_s=timeout_s, path=os.fspath(path))

    def ask(self, operation: str, **arguments: Any) -> Any:
        """As `_ask`. What only looks is asked once more when another node has taken the place of this one meanwhile, as in an
        upgrade: it listens on the same socket, so that one waits for it."""
        try:
            return self._ask(operation, arguments)
        except NodeLost:
            if operation not in _LOOKS or not self._path:
                raise
            try:
                again = NodeConnection.connect(self._path, timeout_s=self._timeout_s)
            except NoNode:
                pass
            else:
                self._socket.close()
                self._socket, self._buffer = again._socket, again._buffer
                return self._ask(operation, arguments)
            raise

    def _ask(self, operation: str, arguments: Mapping[str, Any]) -> Any:
        """The node's answer. Conflict, Refused, or a class of agentkit.errors when it says no; NodeLost; TimeoutError."""
        asked = self._send(operation, arguments)
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            message = self._receive(deadline_s)
            if message is None:
                raise TimeoutError(
                    f"the node did not answer `{operation}` within {self._timeout_s:g} s; is it stopped or stuck?"
                )
            id, kind, value = message
            if id != asked:
                continue  # a late answer to a question that was given up
            if kind == "ok":
                return value
            if kind == "error":
                raise refusal(value)

    def events(self, operation: str, *, tick_s: float | None = None, **arguments: Any) -> Iterator[Any]:
        """What the node tells from now on, until it or we close. With `tick_s`: None whenever that long nothing came.

        Ends when the node goes away. Raises like `ask` when it refuses."""
        asked = self._send(operation, arguments)
        while True:
            try:
                message = self._receive(None if tick_s is None else time.monotonic() + tick_s)
            except NodeLost:
                return
            if message is None:
                yield None
                continue
            id, kind, value = message
            if id != asked:
                continue
            if kind == "error":
                raise refusal(value)
            if kind == "ok":
                return
            yield value

    def descriptors(self) -> tuple[int, ...]:
        return (self._socket.fileno(),)

    def has_arrived(self) -> bool:
        return bool(self._arrived)

    def is_silent(self) -> None:
        """The kernel tells of the end of a process on this machine."""

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, operation: str, arguments: Mapping[str, Any]) -> int:
        self._last_id += 1
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendall(pack([self._last_id, operation, dict(arguments)]))
        except TimeoutError:
            raise
        except OSError as exc:
            raise NodeLost(f"the node closed the conversation before `{operation}`: {exc}") from exc
        return self._last_id

    def _receive(self, deadline_s: float | None) -> Any:
        """The next message; None when `deadline_s` (monotonic) passes first. NodeLost at the end of the stream."""
        while not self._arrived:
            if deadline_s is None:
                self._socket.settimeout(None)
            else:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._socket.settimeout(left_s)
            try:
                data = self._socket.recv(256 * 1024)
            except TimeoutError:
                return None
            except OSError as exc:
                raise NodeLost(f"the conversation with the node broke: {exc}") from exc
            if not data:
                raise NodeLost("the node closed the conversation")
            self._arrived.extend(self._buffer.feed(data))
        return self._arrived.popleft()


def refusal(error: Mapping[str, Any]) -> Exception:
    """The exception for an error answer."""
    code, message, details = str(error["code"]), str(error["message"]), error.get("details") or {}
    if code == "conflict":
        return Conflict(message, details)
    if code in BY_CODE:
        return from_wire(code, message, bool(error.get("retry_safe")), details)
    return Refused(code, message, details)
