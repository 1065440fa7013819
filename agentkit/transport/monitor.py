"""What happens to a socket's connections, as libzmq tells it."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any, Final

import zmq

from agentkit.transport.context import context, no_socket_left
from agentkit.transport.frames import Frames
from agentkit.transport.reader import Reader

_EVENT: Final = struct.Struct("=Hi")
_names = itertools.count()

#: The connection is gone, or never came about.
LOST: Final = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
REFUSED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
#: At a listening socket: somebody did not come in.
TURNED_AWAY: Final = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def watched(sock: zmq.Socket[Any], events: int) -> zmq.Socket[Any]:
    """A socket on which `sock`'s `events` arrive; close it (after `sock.disable_monitor()`) yourself.

    Unreachable, and `sock` is closed, when the process may not open any more sockets."""
    address = f"inproc://monitor-{next(_names)}"
    try:
        sock.monitor(address, events)
        ears: zmq.Socket[Any] = context().socket(zmq.PAIR)
    except zmq.ZMQError as exc:
        sock.close(linger=0)
        raise no_socket_left(exc) from exc
    ears.linger = 0
    ears.connect(address)
    return ears


def event_of(frames: Frames) -> tuple[int, int]:
    """(event, value) of one monitor message."""
    event, value = _EVENT.unpack_from(frames[0])
    return event, value


class Monitor:
    """Calls `on_event(event, value)` on the running loop. Obeys the reader's rule, being a socket like any other."""

    def __init__(self, sock: zmq.Socket[Any], events: int, on_event: Callable[[int, int], None]) -> None:
        self._sock = sock
        self._ears = watched(sock, events)
        self._on_event = on_event
        self._reader = Reader(self._ears, self._on_frames)

    def drain_now(self) -> None:
        """Hear what has happened by now."""
        self._reader.drain_now()

    def close(self) -> None:
        """Before the socket itself is closed."""
        self._reader.close()
        self._sock.disable_monitor()
        self._ears.close()

    def _on_frames(self, frames: Frames) -> None:
        self._on_event(*event_of(frames))
