"""Where agents tell how they are: the receiving side of sd_notify(3).

Who sent a message is what the kernel says (SCM_CREDENTIALS), never what the message says. A unix datagram socket queues ten
messages, whatever its buffer, so it is drained at once and senders try again.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from agentkit.observe.log import get_logger
from startup.node.zygote.wire import close_all

#: Longest message taken, in bytes; a longer one is dropped and counted.
MAX_BYTES: Final = 32 * 1024
#: Most fields and descriptors taken from one message.
MAX_FIELDS: Final = 64
MAX_FDS: Final = 16
#: Messages taken in one turn of the loop.
_PER_TURN: Final = 128
#: After nothing but watchdog messages, how long the next are left to gather, in seconds: those of a fleet coincide, and each woke the
#: node by itself. Twice as long, and the ten that the queue holds were not enough for them.
GATHER_S: Final = 0.002
#: What the kernel may hold for us, in bytes; it grants what it allows.
_RECEIVE_BUFFER: Final = 8 * 1024 * 1024

#: What an agent says that has nothing else to say.
WATCHDOG: Final = {"WATCHDOG": "1"}

#: Made once: joining members of an enumeration is six calls, and this is done for each message.
_CUT_OFF: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_CREDENTIALS: Final = struct.Struct("3i")
_INT_BYTES: Final = array.array("i").itemsize

log = get_logger(__name__)


class Notification(NamedTuple):
    """One message. `fds` are the receiver's to close; only a message with FDSTORE=1 brings any."""

    pid: int
    fields: Mapping[str, str]
    fds: tuple[int, ...] = ()
    is_guest: bool = False  #: from another user than ours


class NotifyServer:
    """Listens from its making until `close`. `on_message` is called in the loop, in the order of arrival."""

    def __init__(
        self,
        path: Path | str,
        on_message: Callable[[Notification], None],
        guests: Callable[[], Container[int]] = frozenset,
    ) -> None:
        """`guests`: uids of others that may send."""
        self._guests = guests
        self.path = Path(path)
        self.dropped = 0  #: messages too long, from another user, or without a sender
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._gathering: asyncio.TimerHandle | None = None
        self.path.unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._sock.bind(str(self.path))
        self.path.chmod(0o600)
        self._loop.add_reader(self._sock, self._drain)

    def close(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()
        self.path.unlink(missing_ok=True)

    def _drain(self) -> None:
        is_routine = True
        for taken in range(_PER_TURN):  # what is left makes the socket readable again in the next turn
            try:
                notification = self._receive()
            except BlockingIOError:
                if taken and is_routine:
                    self._gather()
                return
            if notification is None:
                self.dropped += 1
                continue
            is_routine = is_routine and notification.fields == WATCHDOG
            try:
                self._on_message(notification)
            except Exception:
                log.exception("notify.failed", pid=notification.pid)

    def _gather(self) -> None:
        self._loop.remove_reader(self._sock)
        self._gathering = self._loop.call_later(GATHER_S, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self._loop.add_reader(self._sock, self._drain)

    def _receive(self) -> Notification | None:
        space = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(MAX_FDS * _INT_BYTES)
        data, ancillary, flags, _ = self._sock.recvmsg(MAX_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        pid, uid, fds = 0, -1, array.array("i")
        for level, kind, value in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = _CREDENTIALS.unpack(value)
            elif kind == socket.SCM_RIGHTS:
                fds.frombytes(value[: len(value) - len(value) % _INT_BYTES])
        fields = parse(data)
        is_guest = uid not in (os.geteuid(), 0)
        is_stranger = is_guest and uid not in self._guests()
        if not pid or is_stranger or flags & _CUT_OFF:
            close_all(fds)
            return None
        if fds and fields.get("FDSTORE") != "1":
            close_all(fds)
            fds = array.array("i")
        return Notification(pid, fields, tuple(fds), is_guest)


def parse(data: bytes) -> dict[str, str]:
    """The fields of a message: lines NAME=value; others, and those beyond the bound, are left out."""
    fields: dict[str, str] = {}
    for line in data.split(b"\n", MAX_FIELDS)[:MAX_FIELDS]:
        name, equals, value = line.partition(b"=")
        if equals and name:
            with suppress(UnicodeDecodeError):
                fields[name.decode("ascii")] = value.decode("utf-8", "replace")
    return fields
