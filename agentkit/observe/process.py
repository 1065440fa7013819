"""What this process costs, read straight from /proc: no psutil, no state that a fork would make wrong.

Each reading opens its file anew: a descriptor kept over a fork would go on telling about the parent.
"""

from __future__ import annotations

import os
import re
import time
from typing import Final, NamedTuple

from agentkit.clock import SYSTEM_CLOCK, Clock

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_MIB: Final = 1024 * 1024
#: Field 22 of /proc/self/stat, counted behind the `)` that ends the command name (which may hold spaces).
_START_FIELD: Final = 19


class Switches(NamedTuple):
    """Context switches of all threads so far. A voluntary one is a wake-up: what an idle agent keeps small."""

    voluntary: int
    involuntary: int


def rss_mb() -> float:
    """Resident memory in MiB, pages shared with other processes included. About 10 us."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES / _MIB


def pss_mb() -> float:
    """Proportional memory in MiB: a page shared by n forks counts 1/n, so the sum over a fleet is what it really uses.

    The kernel walks the whole page table for it (0.2 ms for 26 MB): for status and health, not for hot paths."""
    with open("/proc/self/smaps_rollup", "rb") as file:
        found = re.search(rb"^Pss:\s+(\d+) kB", file.read(), re.MULTILINE)
    return int(found[1]) / 1024 if found else rss_mb()


def cpu_s() -> float:
    """User and system time of all threads so far, in seconds."""
    return time.process_time()


def uptime_s() -> float:
    """Seconds since this process was forked (an exec does not count as a new process)."""
    with open("/proc/self/stat", "rb") as file:
        behind_name = file.read().rpartition(b")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(behind_name[_START_FIELD]) / _TICKS_PER_S


def started_wall_s(clock: Clock = SYSTEM_CLOCK) -> float:
    """When this process was forked, in seconds since the epoch; exact to about 10 ms."""
    return clock.wall_s() - uptime_s()


def threads() -> int:
    """Threads of this process, those of C libraries included."""
    return sum(1 for _ in os.scandir("/proc/self/task"))


def switches() -> Switches:
    """Context switches summed over the threads that live now."""
    voluntary = involuntary = 0
    for thread in os.scandir("/proc/self/task"):
        try:
            with open(f"{thread.path}/status", "rb") as file:
                text = file.read()
        except FileNotFoundError:  # it ended between listing and open
            continue
        voluntary += int(text.partition(b"\nvoluntary_ctxt_switches:")[2].split(None, 1)[0])
        involuntary += int(text.partition(b"\nnonvoluntary_ctxt_switches:")[2].split(None, 1)[0])
    return Switches(voluntary, involuntary)


class MemorySampler:
    """Resident memory for log lines: read when asked, but at most once in `every_s`."""

    def __init__(self, *, every_s: float = 1.0, clock: Clock = SYSTEM_CLOCK) -> None:
        self._every_s = every_s
        self._clock = clock
        self._due_s = float("-inf")
        self._mb = 0.0

    def mb(self) -> float:
        """MiB, rounded to two digits."""
        now_s = self._clock.now_s()
        if now_s >= self._due_s:
            self._due_s = now_s + self._every_s
            self._mb = round(rss_mb(), 2)
        return self._mb
