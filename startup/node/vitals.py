"""What a node and its agents cost, as `status` tells it. Read from /proc."""

from __future__ import annotations

import asyncio
import os
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from startup.node import procinfo

#: Less than this is no room: a rotated log alone takes ten times as much.
ENOUGH_ROOM_BYTES: Final = 1024 * 1024


def pss_mb(pid: int) -> float | None:
    """PSS of one process; None when it has ended."""
    size = procinfo.pss_bytes(pid)
    return None if size is None else round(size / 2**20, 2)


async def pss_of(pids: Mapping[str, int]) -> dict[str, float]:
    """PSS in MB by the same keys. Measured on a thread for each CPU: the kernel walks each process's pages, 0.1-1 ms each, and lets
    other threads run meanwhile."""
    threads = len(os.sched_getaffinity(0))
    keys = list(pids)

    def measure(part: list[str]) -> dict[str, float]:
        found = {key: pss_mb(pids[key]) for key in part}
        return {key: size for key, size in found.items() if size is not None}

    parts = (part for n in range(threads) if (part := keys[n::threads]))
    return dict(ChainMap(*await asyncio.gather(*(asyncio.to_thread(measure, part) for part in parts))))


def wakeups() -> int:
    """How often this thread was woken since it began."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    return 0


def no_room(folder: Path) -> str:
    """Said when next to nothing can be written there any more; "" otherwise."""
    found = os.statvfs(folder)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes >= ENOUGH_ROOM_BYTES:
        return ""
    return f"no room: {free_bytes // 1024} KiB left below {folder}; log lines are dropped, changes refused"
