"""Connections from which garbage comes are cut, so that whoever sends it pays for it and not the callers beside.

libzmq has no word for "end this one connection". But each frame knows the descriptor that it came by (`ZMQ_SRCFD`), and a `shutdown`
of that ends the connection. The number may have been given to another connection by the time the frame is read; so the
address at the other end is noted with the first strike, and it must still be the same when the connection is cut."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any, Final

import zmq

from agentkit.clock import now_s
from agentkit.observe.log import get_logger
from agentkit.transport import frames

log = get_logger("agentkit.inbox")

#: So many bad messages within `WINDOW_S` end a connection: a caller with one faulty message gets to see its errors. With 10,000 hostile
#: frames on its inbox an agent answers others as fast as with the same attack on its neighbour (benchmarks/rpc_hostile.py).
MAX_STRIKES: Final = 16
WINDOW_S: Final = 10.0
#: Connections that are watched or were cut and are remembered, each; the oldest is forgotten first.
MAX_KNOWN: Final = 1024
#: Bad messages are logged at most so often, in seconds, with their number.
COMPLAIN_EVERY_S: Final = 1.0


class _Record:
    __slots__ = ("address", "count", "first_s")

    def __init__(self, address: Any, first_s: float) -> None:
        self.address, self.count, self.first_s = address, 1, first_s


class Strikes:
    """Reads for a ROUTER and remembers where the last message came from. Belongs to the inbox that it counts for."""

    def __init__(self) -> None:
        #: routing ids of connections that were ended: what is left of them is to be dropped
        self.cut: dict[bytes, None] = {}
        self.total = 0  #: connections that were ended
        self.bad_frames = 0  #: messages that were bad, whosever they were
        self._complained_s = 0.0
        self._records: dict[bytes, _Record] = {}
        self.header: zmq.Frame | None = None  #: of the message that was read last

    def receive(self, sock: zmq.Socket[Any]) -> frames.Frames:
        """`frames.receive_routed`."""
        received, self.header = frames.receive_routed(sock)
        return received

    def strike(self, routing_id: bytes, why: str) -> bool:
        """The message that was read last is bad; whether its connection was cut for it."""
        self.bad_frames += 1
        now = now_s()
        if now - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now
            log.warning("inbox.bad_frame", why=why, total=self.bad_frames)
        record = self._records.get(routing_id)
        if record is not None and now - record.first_s <= WINDOW_S:
            record.count += 1
            if record.count < MAX_STRIKES:
                return False
            del self._records[routing_id]
            return self._end(routing_id, record.address)
        self._records.pop(routing_id, None)
        _keep(self._records, routing_id, _Record(self._reach(), now))
        return False

    def _end(self, routing_id: bytes, address: Any) -> bool:
        if address is None or self._reach(cut_if=address) != address:
            return False  # it has gone by itself
        self.total += 1
        _keep(self.cut, routing_id, None)
        return True

    def _reach(self, cut_if: Any = None) -> Any:
        """`reach` of the last message's connection."""
        assert self.header is not None
        try:
            return reach(int(self.header.get(zmq.SRCFD)), cut_if)
        except zmq.ZMQError:
            return None


def reach(descriptor: int, cut_if: Any = None) -> Any:
    """The address at the other end of a connection of libzmq's, None when it has none any more. Cuts it if it is `cut_if`."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    try:
        found = socket.socket(fileno=duplicate)
    except OSError:  # the number is another thing's by now
        os.close(duplicate)
        return None
    with closing(found) as connection:
        try:
            address = connection.getpeername()
            if address == cut_if:
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return None
        return address


def _keep(known: dict[bytes, Any], key: bytes, value: Any) -> None:
    if len(known) >= MAX_KNOWN:
        del known[next(iter(known))]
    known[key] = value
