"""The two ends of the event relay in a process: what it publishes goes out by one socket, what it subscribed to comes in by another.

Queues are bounded on both sides, and nobody waits for anybody: what finds no room is dropped, and seen as a gap by its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import zmq

from agentkit.transport import context
from agentkit.transport.reader import Reader

#: Events that wait for a relay that is slow or away; then new ones are dropped.
SEND_QUEUE: Final = 1_024
#: Events that wait for one subscriber, once in the relay and once in the subscriber's process; then new ones are dropped.
SUBSCRIBER_QUEUE: Final = 4_096
#: Pause before a relay that is away is tried again, in ms: first, then doubled up to the last.
RECONNECT_MS: Final = (100, 1_000)
#: How long a publisher that ends waits for its last events to leave, in ms.
LINGER_MS: Final = 500

_NOBLOCK: Final = int(zmq.NOBLOCK)


class Endpoints(NamedTuple):
    """Where the relay of a node is found: unix sockets in its run directory."""

    publish: str
    local: str  #: what this machine publishes
    remote: str  #: what the other machines publish

    @classmethod
    def below(cls, folder: str | Path) -> Endpoints:
        # no name is longer than those that startup.node.paths counts with: the kernel takes 107 bytes
        return cls(*(f"ipc://{folder}/{name}.sock" for name in ("ev-in", "ev-out", "ev-far")))


class Sender:
    """Sends frames to the relay at `endpoint`, which need not be there yet. For one thread."""

    def __init__(self, endpoint: str, *, has_own_context: bool = False) -> None:
        """`has_own_context`: `close` waits until what was sent has left. An agent's process does that when it ends; a script's
        does not, and must not end the context that the rest of it uses."""
        self._own_context: zmq.Context[Any] | None = zmq.Context() if has_own_context else None
        self._sock: zmq.Socket[Any] = (self._own_context or context.context()).socket(zmq.PUSH)
        self._sock.sndhwm = SEND_QUEUE
        self._sock.linger = LINGER_MS
        reconnect(self._sock)
        self._sock.connect(endpoint)

    def send(self, frame: bytes) -> bool:
        """Whether there was room. Does not wait."""
        try:
            self._sock.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """What was sent goes on leaving for LINGER_MS."""
        self._sock.close()
        if self._own_context is not None:
            self._own_context.term()


class Subscriber:
    """Calls `on_frame` for whatever begins with one of `prefixes`, on the loop that made it, until closed."""

    def __init__(
        self,
        endpoints: Iterable[str],
        prefixes: Iterable[bytes],
        on_frame: Callable[[bytes], None],
        *,
        max_frame_bytes: int,
    ) -> None:
        self._sock = context.socket(zmq.SUB, max_frame_bytes=max_frame_bytes)
        self._sock.rcvhwm = SUBSCRIBER_QUEUE
        reconnect(self._sock)
        for prefix in prefixes:
            self._sock.subscribe(prefix)
        for endpoint in endpoints:
            self._sock.connect(endpoint)
        self._reader = Reader(self._sock, cast("Any", on_frame), take=cast("Any", _one))

    @property
    def is_closed(self) -> bool:
        return bool(self._sock.closed)

    def subscribe(self, prefix: bytes) -> None:
        """In force after all that was subscribed to before. Counted: as many `unsubscribe` end it."""
        self._sock.subscribe(prefix)
        self._reader.poke()

    def unsubscribe(self, prefix: bytes) -> None:
        self._sock.unsubscribe(prefix)
        self._reader.poke()

    def safety_check(self) -> int:
        """Take what an eaten edge may have hidden; how many messages that were."""
        return self._reader.drain_now()

    def close(self) -> None:
        self._reader.close()
        self._sock.close()


def _one(sock: zmq.Socket[Any]) -> bytes:
    """One frame. Parts of a message are not told apart: an event is one frame, and to look costs three times as much as to read.
    Who sends several has sent several events, of which `on_frame` may have to refuse some."""
    return sock.recv(_NOBLOCK)


def reconnect(sock: zmq.Socket[Any]) -> None:
    """How a socket behaves whose other end has gone: libzmq tries again by itself."""
    sock.reconnect_ivl, sock.reconnect_ivl_max = RECONNECT_MS
