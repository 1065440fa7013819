"""A node's successor on the same machine, with the code that is installed now: begun beside it, given everything when it is prepared.

The heir is a fresh Python. It imports everything and says that it is prepared, while the node goes on; so code that can't be imported
changes nothing. Then the node lets go of all that only one may hold (its ports, its files, the zygote's connection) and says go. Two
things they share from the beginning, so that nobody finds them free or gone: the machine's lock, and the listening socket of the control
conversation, where commands and agents wait meanwhile. The heir takes over as after any death of a node, and says that it is up. If it
does not, the node, which still has its own code in memory, takes over in the same way."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Final

from startup.node.launch import boot_command, boot_environment
from startup.node.options import NodeOptions

#: Where an heir finds what it is given.
CHANNEL_FD: Final = 3
LOCK_FD: Final = 4
CONTROL_FD: Final = 5
LOG_FD: Final = 6

PREPARED: Final = b"prepared"
GO: Final = b"go"
UP: Final = b"up"

#: Above what is handed down, so that nothing is overwritten before it is copied.
_ABOVE: Final = 64
_WORDS_BYTES: Final = 2000


class Heir:
    """One attempt. `end` it, or let it live."""

    def __init__(self, options: NodeOptions, *, lock_fd: int, control_fd: int, within_s: float) -> None:
        """Begins it. `control_fd` is the heir's from now on: ours to close. OSError: no process can be had."""
        self.control_fd = control_fd
        self._within_s = within_s
        self._ends_s = time.monotonic() + within_s
        self._words = os.memfd_create("agentkit-heir")
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours = {
            CHANNEL_FD: theirs.fileno(),
            LOCK_FD: lock_fd,
            CONTROL_FD: control_fd,
            LOG_FD: 2,
            1: self._words,
            2: self._words,
        }
        copies = [(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _ABOVE), target) for target, source in ours.items()]
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                boot_command(options.heir()),
                boot_environment(),
                file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in copies],
                setsid=not options.foreground,
            )
        finally:
            theirs.close()
            for source, _ in copies:
                os.close(source)
        self._pidfd = os.pidfd_open(self.pid)

    @property
    def channel_fd(self) -> int:
        """Readable when it has said something, or is gone."""
        return self._channel.fileno()

    @property
    def left_s(self) -> float:
        return max(0.0, self._ends_s - time.monotonic())

    def heard(self, expected: bytes) -> str:
        """What `channel_fd` announced: "" if it is what was expected, else why not."""
        try:
            said = self._channel.recv(_WORDS_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return f"it said nothing within {self._within_s:g} s"
        except OSError:
            said = b""
        if said == expected:
            return ""
        return said.decode("utf-8", "replace") or self._last_words()

    def install(self) -> str:
        """It takes over; returns when it has, or did not in time: then why, and it is gone. Everything of ours is let go of already."""
        with suppress(OSError):
            self._channel.send(GO)
        select.select([self._channel], [], [], self.left_s)
        why = self.heard(UP)
        if why:
            self.end()
        return why

    def end(self) -> None:
        """Nothing is left of it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._forget()

    def stay(self) -> int:
        """Stand in for it before whoever waits for this process: signals are passed on, its exit code is ours."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells both of us
        signal.signal(signal.SIGTERM, lambda *_: signal.pidfd_send_signal(self._pidfd, signal.SIGTERM))
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._forget()
        return code

    def _forget(self) -> None:
        self._channel.close()
        os.close(self._pidfd)
        os.close(self._words)

    def _last_words(self) -> str:
        size = os.fstat(self._words).st_size
        text = os.pread(self._words, _WORDS_BYTES, max(0, size - _WORDS_BYTES)).decode("utf-8", "replace").strip()
        return text.splitlines()[-1] if text else "it ended without a word"
