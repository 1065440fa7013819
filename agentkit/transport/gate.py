"""The gate of a successor: a pipe that its node opens, with one byte, when nothing is left of the process before it.

The pipe's end without that byte means that the node is gone. Whoever does not serve yet then ends itself: the process before it
serves, and the next node begins the roll again. Whoever serves goes on, and takes the end of its predecessor, which it was handed
as a pidfd, for the byte: so nobody runs twice, and nobody waits for ever, whatever dies in between."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

OVERLAP: Final = "overlap"
HANDOVER: Final = "handover"
#: The ways to replace a running process.
WAYS: Final = (OVERLAP, HANDOVER)

#: Where a child finds its gate, and its predecessor: numbers of descriptors.
GATE_VARIABLE: Final = "AGENTKIT_GATE"
PREDECESSOR_VARIABLE: Final = "AGENTKIT_PREDECESSOR"
#: The `roll:` of the fleet file, when it has one.
ROLL_VARIABLE: Final = "AGENTKIT_ROLL"

#: Tell a process to go as SIGTERM does, and that its successor serves already, or waits for its end: either way new connections are
#: not its own any more. Real-time signals: those that have names are for authors, and SIGTERM could not say which it means.
SUCCEEDED: Final = signal.SIGRTMIN + 3
HANDED_OVER: Final = signal.SIGRTMIN + 4
#: Have a process write the stacks of all its threads to its standard error, and go on: what `agentkit debug` does where a loop is stuck.
STACKS: Final = signal.SIGRTMIN + 5


def way_of(cls: Any, environ: Mapping[str, str]) -> str:
    """How a process of this class takes over: as the fleet file says, else as the class says, else by overlap, unless it keeps a
    state: two processes would each change a copy of it."""
    usual = HANDOVER if getattr(cls, "keeps_state", False) else OVERLAP
    return environ.get(ROLL_VARIABLE) or getattr(cls, "roll", None) or usual


class Gate:
    """Belongs to the process that waits at it."""

    def __init__(self, fd: int, predecessor: int | None = None) -> None:
        """`fd`: the reading end of a pipe. `predecessor`: a pidfd. Both are ours from now on."""
        self._fd: int | None = fd
        self._predecessor = predecessor
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Gate | None:
        """The gate that was handed down, or None. Takes its variables out of `environ`: it is not for our children."""
        fd, predecessor = environ.pop(GATE_VARIABLE, ""), environ.pop(PREDECESSOR_VARIABLE, "")
        if not fd:
            return None
        return cls(int(fd), int(predecessor) if predecessor else None)

    def wait(self) -> bool:
        """Block until it opens, and close it; False: there is nobody to open it any more. Signals do what they did before."""
        assert self._fd is not None
        opened = os.read(self._fd, 1) != b""
        self.close()
        return opened

    def watch(self, on_open: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Call one of the two, once, on the running loop."""
        assert self._fd is not None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable, on_open, on_lost)

    def await_predecessor(self, on_gone: Callable[[], None]) -> None:
        """After `on_lost`: call `on_gone` once the predecessor has ended (at once when there is none)."""
        assert self._loop is not None
        if self._predecessor is None or select.select([self._predecessor], [], [], 0)[0]:
            self.close()
            on_gone()
            return
        self._loop.add_reader(self._predecessor, self._ended, on_gone)

    def close(self) -> None:
        for fd in (self._fd, self._predecessor):
            if fd is not None:
                if self._loop is not None:
                    self._loop.remove_reader(fd)
                os.close(fd)
        self._fd = self._predecessor = None

    def _readable(self, on_open: Callable[[], None], on_lost: Callable[[], None]) -> None:
        assert self._fd is not None
        assert self._loop is not None
        if os.read(self._fd, 1):
            self.close()
            on_open()
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = None
        on_lost()

    def _ended(self, on_gone: Callable[[], None]) -> None:
        self.close()
        on_gone()
