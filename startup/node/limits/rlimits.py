"""Limits without cgroups: what setrlimit(2) holds, set by the process itself, and what is measured now and then (bounds.py asks).

The kernel then knows a limit of one process's own memory, not of all that an agent is, and none of its share of the CPU: a look at PSS
finds who is over its limit, and the rlimit only keeps a hog from eating the machine between two looks."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Final

from startup.node import procinfo
from startup.plan.limits import Limits, Usage

#: How much more than its limit a process may ask for before it gets MemoryError: what it asks for is not what it uses, stacks of
#: threads are 8 MiB each.
DATA_FACTOR: Final = 2
DATA_SPARE_BYTES: Final = 256 * 2**20

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def told(limits: Limits, but: Collection[str] = ()) -> dict[str, int]:
    """What the child is told to take on (`take_on`), beyond what it has when it does. `but`: what a cgroup holds already."""
    found = {}
    if limits.memory_bytes is not None and "memory" not in but:
        found["data_bytes"] = limits.memory_bytes * DATA_FACTOR + DATA_SPARE_BYTES
    if limits.pids is not None and "pids" not in but:
        found["tasks"] = limits.pids
    return found


def take_on(rlimits: Mapping[str, int]) -> None:
    """In the process that is to be held."""
    if (more := rlimits.get("data_bytes")) is not None:
        with open("/proc/self/statm", encoding="ascii") as file:
            _lower(resource.RLIMIT_DATA, int(file.read().split()[5]) * _PAGE + more)
    if (more := rlimits.get("tasks")) is not None and os.getuid():  # root is not held to it
        _lower(resource.RLIMIT_NPROC, _tasks_of(os.getuid()) + more)


def usage(pid: int) -> Usage:
    """Of a process and everything below it, now. 0.1-1 ms for each."""
    memory_bytes = tasks = 0
    todo, seen = [pid], {pid}
    while todo:
        found = todo.pop()
        memory_bytes += procinfo.pss_bytes(found) or 0
        with suppress(OSError):
            threads = os.listdir(f"/proc/{found}/task")  # noqa: PTH208 - names, as numbers
            tasks += len(threads)
            for thread in threads:
                with open(f"/proc/{found}/task/{thread}/children", encoding="ascii") as file:
                    new = {int(child) for child in file.read().split()} - seen
                seen |= new
                todo += new
    return Usage(memory_bytes=memory_bytes, pids=tasks)


def _lower(which: int, to: int) -> None:
    soft, hard = resource.getrlimit(which)
    if soft == resource.RLIM_INFINITY or to < soft:
        resource.setrlimit(which, (to, hard))


def _tasks_of(uid: int) -> int:
    """The kernel counts threads of all of a user's processes."""
    number = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                if entry.stat().st_uid == uid:
                    number += len(os.listdir(f"/proc/{entry.name}/task"))  # noqa: PTH208
    return number
