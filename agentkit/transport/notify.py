"""Telling whoever started us how we are: the sd_notify(3) protocol, one datagram of NAME=value lines.

A node listens there, and so does systemd. A unix datagram socket queues only ten messages by default, so a full queue is
waited for, a little, and what must arrive (READY) is worth more patience than what comes again (WATCHDOG)."""

from __future__ import annotations

import array
import errno
import random
import socket
import time
from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

#: Pauses before another attempt at a full queue, in seconds, jittered; about 3 s in all. Many short ones: whoever comes back seldom
#: finds the queue filled by those who come back often.
PATIENCE_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, *(0.06,) * 48)

#: Longest value sent, in characters: the other side bounds its buffer.
MAX_VALUE: Final = 4096


class Outcome(Enum):
    SENT = auto()
    FULL = auto()  #: the other side's queue has no room: try again
    NOBODY = auto()  #: nobody listens there


class Notifier:
    """Sends to one notify socket. Without an address every call does nothing: the process was started by hand."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self._sock: socket.socket | None = None
        if address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._sock.setblocking(False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        address = environ.get("NOTIFY_SOCKET") or None
        if address and address.startswith("@"):  # an abstract address, written the printable way
            address = "\0" + address[1:]
        return cls(address)

    def send(self, fields: Mapping[str, object]) -> bool:
        """Send `fields`, waiting for up to 3 s for room in the queue; whether they went out. For code that may block."""
        for pause_s in PATIENCE_S:
            outcome = self.send_now(fields)
            if outcome is not Outcome.FULL:
                return outcome is Outcome.SENT
            time.sleep(pause_s * random.uniform(0.5, 1.5))
        return self.send_now(fields) is Outcome.SENT

    def send_now(self, fields: Mapping[str, object], *, fds: tuple[int, ...] = ()) -> Outcome:
        """Send `fields` in one datagram, with descriptors for the other side to keep. Thread-safe.

        Never raises: that nobody listens (any more) must not hurt the one who tells."""
        if self._sock is None or self.address is None:
            return Outcome.NOBODY
        data = "\n".join(f"{name}={_one_line(value)}" for name, value in fields.items()).encode(
            errors="backslashreplace"
        )
        try:
            if fds:
                # not socket.send_fds: it forgets the address, and nothing would arrive
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                self._sock.sendmsg([data], [rights], 0, self.address)
            else:
                self._sock.sendto(data, self.address)
        except OSError as exc:
            return Outcome.FULL if exc.errno in (errno.EAGAIN, errno.ENOBUFS) else Outcome.NOBODY
        return Outcome.SENT

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _one_line(value: object) -> str:
    return str(value).replace("\n", "; ")[:MAX_VALUE]
