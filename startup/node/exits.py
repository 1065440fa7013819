"""How processes ended: those that the zygote reaps are told by it, all others are seen here.

A node may have children of its own (zygotes, and what a dead zygote left, because the node is a subreaper) and may look after
processes that are nobody's child that it knows (agents that outlived both node and zygote).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple


class Exit(NamedTuple):
    """The end of one process."""

    key: str
    incarnation: int
    pid: int
    status: int | None  #: a wait status, for os.waitstatus_to_exitcode; None: it was not our child, nobody told us
    maxrss_bytes: int = 0
    cpu_s: float = 0.0

    @property
    def code(self) -> int | None:
        """The exit code, or minus the signal; None when it is not known."""
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)


class _Watched(NamedTuple):
    key: str
    incarnation: int
    pidfd: int


class ExitWatch:
    """Watches processes by pidfd, and reaps every child of this process; there must be only one in a process."""

    def __init__(self, on_exit: Callable[[Exit], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._watched: dict[int, _Watched] = {}
        # uvloop does not let its own handler be set for this signal, but wakes for Python's, which may only schedule
        self._before = signal.signal(signal.SIGCHLD, lambda *_: self._loop.call_soon(self._reap))

    def watch(self, *, key: str, incarnation: int, pid: int, pidfd: int) -> None:
        """Tell `on_exit` when the process ends; `pidfd` is ours from now on. One that has ended already is told in the next turn."""
        self.forget(pid)
        self._watched[pid] = _Watched(key, incarnation, pidfd)
        self._loop.add_reader(pidfd, self._ended, pid)

    def forget(self, pid: int) -> None:
        """Do not tell."""
        watched = self._watched.pop(pid, None)
        if watched is not None:
            self._loop.remove_reader(watched.pidfd)
            os.close(watched.pidfd)

    def close(self) -> None:
        signal.signal(signal.SIGCHLD, self._before)
        for pid in list(self._watched):
            self.forget(pid)

    def _ended(self, pid: int) -> None:
        try:
            reaped, status, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:  # not our child
            self._tell(pid, None, None)
        else:
            if reaped:
                self._tell(pid, status, usage)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._tell(pid, status, usage)

    def _tell(self, pid: int, status: int | None, usage: object) -> None:
        watched = self._watched.get(pid)
        if watched is None:  # a zygote, whose connection told already, or somebody's orphan
            return
        self.forget(pid)
        self._on_exit(
            Exit(
                key=watched.key,
                incarnation=watched.incarnation,
                pid=pid,
                status=status,
                maxrss_bytes=getattr(usage, "ru_maxrss", 0) * 1024,
                cpu_s=getattr(usage, "ru_utime", 0.0) + getattr(usage, "ru_stime", 0.0),
            )
        )


async def gone(pid: int, within_s: float) -> None:
    """Wait for a process to end."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), within_s)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
