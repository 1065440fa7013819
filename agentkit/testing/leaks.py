"""What a test leaves behind: child processes, threads, open sockets and files, ZeroMQ sockets, asyncio tasks.

    check = LeakCheck()                 # remembers what is there
    ...                                 # the test
    check.assert_none(within_s=1.0)     # fails, naming what came and did not go

Only what this process owns is seen: a daemon that has left it (double fork) must be looked for by whoever started it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

#: Between two looks while something is still there: not everything that goes says so (libzmq closes in a thread of its own).
_LOOK_AGAIN_S: Final = 0.005
#: Leaks named in a message; who leaks more leaks them in one place.
_TOLD: Final = 20
#: Descriptors that belong to nobody's test: the reader's own, and anonymous ones of loops and ZeroMQ contexts.
_UNINTERESTING: Final = re.compile(r"/proc/|/dev/|anon_inode:")
#: Threads of a loop's default executor: they end with the loop.
_EXECUTOR_THREAD: Final = re.compile(r"asyncio_\d+")


class LeakCheck:
    """Compares what this process owns now with what it owned when the check was made."""

    def __init__(self) -> None:
        self._children = _children()
        self._threads = set(threading.enumerate())
        self._descriptors = _descriptors()

    def found(self) -> list[str]:
        """One line for each thing that is new and still there."""
        new = _descriptors().items() - self._descriptors.items()
        return [
            *(f"process {pid} ({_command(pid)})" for pid, _ in sorted(_children() - self._children)),
            *(f"thread {thread.name!r}{' (daemon)' * thread.daemon}" for thread in self._new_threads()),
            *(f"descriptor {fd} ({target})" for fd, target in sorted(new) if not _UNINTERESTING.match(target)),
            *_zmq_sockets({fd for fd, _ in new}),
        ]

    def assert_none(self, *, within_s: float = 1.0) -> None:
        """AssertionError when something new is still there after `within_s`; returns as soon as nothing is."""
        ends_s = time.monotonic() + within_s
        left = self.found()
        if left:
            gc.collect()  # what waits for the collector to close it is untidy, not leaked
        while left and time.monotonic() < ends_s:
            time.sleep(_LOOK_AGAIN_S)
            left = self.found()
        if left:
            more = [f"and {len(left) - _TOLD} more"] if len(left) > _TOLD else []
            lines = "\n  ".join(left[:_TOLD] + more)
            raise AssertionError(f"left behind, still there after {within_s:g} s:\n  {lines}")

    def _new_threads(self) -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread not in self._threads and not _EXECUTOR_THREAD.fullmatch(thread.name)
        ]


@asynccontextmanager
async def no_tasks_left(*, within_s: float = 1.0) -> AsyncIterator[None]:
    """AssertionError when a task begun inside is still running `within_s` after the end."""
    before = asyncio.all_tasks()
    yield
    new = asyncio.all_tasks() - before - {asyncio.current_task()}
    if not new:
        return
    _, left = await asyncio.wait(new, timeout=within_s)
    if left:
        lines = "\n  ".join(sorted(f"task {task.get_name()!r}: {task.get_coro()!r}" for task in left))
        raise AssertionError(f"left behind, still running after {within_s:g} s:\n  {lines}")


def _children() -> set[tuple[int, int]]:
    """(pid, start time) of living children; one that only waits to be reaped holds nothing any more.

    Every process is looked at: /proc/self/task/*/children is there only where the kernel was built with it."""
    own = str(os.getpid()).encode()
    found: set[tuple[int, int]] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError), open(f"{entry.path}/stat", "rb") as file:
            state, parent, *fields = file.read().rpartition(b")")[2].split()
            if parent == own and state not in (b"Z", b"X"):
                found.add((int(entry.name), int(fields[17])))
    return found


def _command(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(200).replace(b"\0", b" ").decode(errors="replace").strip() or "no command line"
    return "gone"


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            found[int(entry.name)] = os.readlink(entry.path)  # noqa: PTH115 - the target need not be a path
    return found


def _zmq_sockets(new: set[int]) -> list[str]:
    """Open ZeroMQ sockets whose descriptor is among `new`: one that was never bound nor connected owns no other."""
    zmq: Any = sys.modules.get("zmq")
    if zmq is None or not new:
        return []
    found = []
    for thing in gc.get_objects():
        with suppress(ReferenceError, AttributeError, zmq.ZMQError):
            if isinstance(thing, zmq.Socket) and not thing.closed and thing.getsockopt(zmq.FD) in new:
                found.append(repr(thing))
    return found
