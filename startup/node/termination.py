"""Ending processes, and seeing to it that nothing of them is left.

An agent is in a session of its own, so what it starts usually shares session and process group with it. What it started with setsid
and let go of (a double fork) is the child of a subreaper by then; it is known by AGENTKIT_INCARNATION and AGENTKIT_NODE in its
environment, or because it was seen below the agent before that was told to stop. Where there are cgroups, it is in the agent's,
whatever it did.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Final, Protocol

from agentkit.names import Incarnation
from startup.node import procinfo
from startup.node.procinfo import ProcStat
from startup.plan.closure import closure

#: What leftovers get between SIGTERM and SIGKILL, in seconds.
LEFTOVER_GRACE_S: Final = 1.0
#: How long killed processes may take to go, in seconds: one that sleeps inside a broken disk's driver does not.
_GIVE_UP_S: Final = 10.0
#: Passes over /proc are shared by all that wait for one, and at least so far apart, in seconds.
_BETWEEN_PASSES_S: Final = 0.003
#: A pass this old, in seconds, still serves to see what is below an agent that is told to stop: 84 may be told at once.
_FRESH_S: Final = 0.1
#: Passes in a row that find nothing before nothing is left: one may miss what forks while it looks.
_EMPTY_PASSES: Final = 2

_INCARNATION: Final = re.compile(rb"(?:^|\0)AGENTKIT_INCARNATION=(\d+)\0")

Known = tuple[int, int]  #: pid, start_ticks


class Census:
    """One pass over /proc. What is asked of it is asked for every process that stops, so it is sorted once, not searched each time."""

    def __init__(self, stats: Mapping[int, ProcStat], marked: Mapping[int, int]) -> None:
        """`stats`: of what is alive. `marked`: pid -> incarnation, of this node's processes and what they started."""
        self.stats = stats
        self.marked = marked

    @cached_property
    def _children(self) -> Mapping[int, Sequence[int]]:
        return _grouped((found.ppid, found.pid) for found in self.stats.values())

    @cached_property
    def _together(self) -> Mapping[int, Sequence[int]]:
        """Session or group -> its members."""
        return _grouped((of, found.pid) for found in self.stats.values() for of in {found.session, found.pgrp})

    @cached_property
    def _bearers(self) -> Mapping[int, Sequence[int]]:
        """Incarnation -> who bears it."""
        return _grouped((incarnation, pid) for pid, incarnation in self.marked.items())

    def descendants(self, roots: Iterable[int]) -> set[int]:
        """`roots` and everything below them that is alive."""
        return {pid for pid in closure(self._children, roots) if pid in self.stats}

    def remains(
        self, pid: int, incarnation: int, known: Iterable[Known] = (), caged: Iterable[int] = ()
    ) -> list[ProcStat]:
        """What is left of the process `pid`: its session, its group, what bears its incarnation, what is in `known` or `caged`, and
        all below."""
        roots = {*self._together.get(pid, ()), *self._bearers.get(incarnation, ()), *caged} & self.stats.keys()
        roots |= {pid for pid, start in known if pid in self.stats and self.stats[pid].start_ticks == start}
        return [self.stats[found] for found in sorted(self.descendants(roots))]


def _grouped(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for key, member in pairs:
        groups.setdefault(key, []).append(member)
    return groups


class Cages(Protocol):
    """What knows the cgroups of processes (bounds.Bounds)."""

    def members(self, incarnation: Incarnation) -> list[int]: ...

    def is_empty(self, incarnation: Incarnation) -> bool: ...

    def forbid_forks(self, incarnation: Incarnation) -> None: ...


class Termination:
    """One for a node. `node` is the AGENTKIT_NODE of its processes: incarnations of two nodes may be equal."""

    def __init__(self, node: str, cages: Cages | None = None) -> None:
        self._cages = cages
        self._mark = os.fsencode(f"AGENTKIT_NODE={node}\0")
        self._loop = asyncio.get_running_loop()
        self._known: dict[int, set[Known]] = {}
        self._pass: asyncio.Task[Census] | None = None
        self._pass_took_s = 0.0
        self._last = Census({}, {})
        self._looked_s = -_FRESH_S

    def terminate(self, pid: int, pidfd: int, number: int = signal.SIGTERM) -> None:
        """SIGTERM, or another signal that means the same, to the process alone: it sees to its own children. Remembers them, for
        `sweep`."""
        self._remember(pid)
        send(pidfd, number)

    def abort(self, pid: int, pidfd: int) -> None:
        """SIGABRT: with faulthandler on, the stacks of all threads land in its log before it dies."""
        self._remember(pid)
        send(pidfd, signal.SIGABRT)

    def kill(self, pid: int, pidfd: int) -> None:
        """SIGKILL to the process; `sweep` does the rest after its exit."""
        self._remember(pid)
        send(pidfd, signal.SIGKILL)

    async def sweep(self, pid: int, incarnation: int, *, grace_s: float = LEFTOVER_GRACE_S) -> list[ProcStat]:
        """After the exit of `pid`: end what is left of it, SIGTERM first and SIGKILL after `grace_s`; [] when nothing is.

        Returns what would not die within 10 s. When there is nothing to do: at once where it had a cgroup, which nobody can come into
        once nobody is in it; else about 40 ms beside 200 other processes, half of what a restart takes."""
        known = self._known.pop(pid, set())
        if self._cages and self._cages.is_empty(Incarnation(incarnation)) and not any(map(_is_there, known)):
            return []
        began_s = time.monotonic()
        told: set[Known] = set()
        empty = 0
        while True:
            census = await self._census()
            caged = self._cages.members(Incarnation(incarnation)) if self._cages else ()
            left = census.remains(pid, incarnation, known, caged)
            if not left and caged:
                continue  # younger than this pass over /proc
            if not left:
                empty += 1
                if empty >= _EMPTY_PASSES:
                    return []
                continue
            empty = 0
            waited_s = time.monotonic() - began_s
            if waited_s > grace_s + _GIVE_UP_S:
                return left
            is_over = waited_s >= grace_s
            if is_over and self._cages:
                self._cages.forbid_forks(Incarnation(incarnation))
            new = [found for found in left if is_over or (found.pid, found.start_ticks) not in told]
            told |= {(found.pid, found.start_ticks) for found in new}
            pidfds = _signal(new if is_over else left, new, signal.SIGKILL if is_over else signal.SIGTERM)
            await self._ended(pidfds, timeout_s=1.0 if is_over else grace_s - waited_s)

    def _remember(self, pid: int) -> None:
        census = self._last if time.monotonic() - self._looked_s < _FRESH_S else self.look()
        below = census.descendants([pid]) - {pid}
        self._known.setdefault(pid, set()).update((found, census.stats[found].start_ticks) for found in below)

    async def _census(self) -> Census:
        if self._pass is None:
            self._pass = self._loop.create_task(self._look_later(), name="termination:pass")
        return await asyncio.shield(self._pass)

    async def _look_later(self) -> Census:
        await asyncio.sleep(max(_BETWEEN_PASSES_S, self._pass_took_s))
        self._pass = None
        return self.look()

    def look(self) -> Census:
        """Who is alive now. 10 ms with 1,000 processes."""
        began_s = time.monotonic()
        stats = {found.pid: found for found in procinfo.all_stats() if found.is_alive}
        marked = {}
        for found in stats.values():
            marks = procinfo.environ_bytes(found.pid) if found.session else b""  # kernel threads have no session
            if self._mark in marks and (incarnation := _INCARNATION.search(marks)):
                marked[found.pid] = int(incarnation[1])
        self._looked_s = time.monotonic()
        self._pass_took_s = self._looked_s - began_s
        self._last = Census(stats, marked)
        return self._last

    async def _ended(self, pidfds: Sequence[int], timeout_s: float) -> None:
        """Wait until all of these have ended; closes them."""
        waiting = set(pidfds)
        done = self._loop.create_future()

        def ended(pidfd: int) -> None:
            self._loop.remove_reader(pidfd)
            waiting.discard(pidfd)
            if not waiting and not done.done():
                done.set_result(None)

        for pidfd in pidfds:
            self._loop.add_reader(pidfd, ended, pidfd)
        try:
            if pidfds:
                await asyncio.wait([done], timeout=max(0.0, timeout_s))
        finally:
            for pidfd in pidfds:
                self._loop.remove_reader(pidfd)
                os.close(pidfd)


def _is_there(known: Known) -> bool:
    pid, start_ticks = known
    found = procinfo.stat(pid)
    return found is not None and found.is_alive and found.start_ticks == start_ticks


def send(pidfd: int, number: int) -> bool:
    """Signal a process that can't have been replaced by another; False when it is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def _signal(wait_for: Sequence[ProcStat], to: Sequence[ProcStat], number: signal.Signals) -> list[int]:
    """Signal the processes of `to`; pidfds of all in `wait_for` that are still the processes that were seen."""
    pidfds = []
    for found in wait_for:
        try:
            pidfd = os.pidfd_open(found.pid)
        except OSError:
            continue
        now = procinfo.stat(found.pid)
        if now is None or now.start_ticks != found.start_ticks:
            os.close(pidfd)
            continue
        if found in to:
            with suppress(PermissionError):
                send(pidfd, number)
        pidfds.append(pidfd)
    return pidfds
