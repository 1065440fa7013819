"""Processes of a machine's run directory whose node is gone: found by what they inherited, ended by pidfd."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from startup.node.limits import cgroups
from startup.node.paths import Places

#: Between SIGTERM and SIGKILL when no revision says how long an agent may take.
GRACE_S: Final = 10.0


def processes_of(places: Places) -> set[int]:
    """Everything of ours that belongs to this run directory: agents by the AGENTKIT_NODE that they inherited, node and zygote
    by the sockets that they listen on, and what agents started by the cgroups that these were in."""
    mark = b"AGENTKIT_NODE=" + os.fsencode(places.control)
    inodes = {f"socket:[{inode}]" for inode in _listening(places)}
    found = {
        pid
        for base in cgroups.bases_of(places.run)
        for cage in cgroups.folders_in(base)
        for pid in cgroups.members(cage)
    }
    found.discard(os.getpid())  # an agent that ends its own cluster
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            # whole entries: another cluster's path may begin like ours
            if mark in (Path(entry.path) / "environ").read_bytes().split(b"\0") or (
                inodes and inodes & set(_links(entry.path))
            ):
                found.add(int(entry.name))
        except OSError:  # somebody else's, or it has ended
            continue
    return found


def _listening(places: Places) -> Iterator[str]:
    paths = {str(places.control), str(places.zygote)}
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if len(fields) > 7 and fields[7] in paths:
            yield fields[6]


def _links(process: str) -> Iterator[str]:
    for link in Path(process, "fd").iterdir():
        with suppress(OSError):
            yield str(link.readlink())


def wait_gone(pids: Iterable[int], timeout_s: float) -> set[int]:
    """Until these processes have ended; those that have not within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    open_: dict[int, int] = {}
    poll = select.poll()
    for pid in pids:
        with suppress(OSError):  # it has ended already
            descriptor = os.pidfd_open(pid)
            open_[descriptor] = pid
            poll.register(descriptor, select.POLLIN)
    try:
        while open_ and (left_s := deadline_s - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left_s * 1000):
                poll.unregister(descriptor)
                os.close(descriptor)
                del open_[descriptor]
        return set(open_.values())
    finally:
        for descriptor in open_:
            os.close(descriptor)


def end(places: Places, *, grace_s: float = GRACE_S) -> list[int]:
    """Ask whatever is left of this run directory to stop, then make it; the pids that were found. Scans until two passes in a
    row find nobody: the first to go may have forked the next."""
    ended: list[int] = []
    empty = 0
    while empty < 2:
        pids = processes_of(places)
        empty = 0 if pids else empty + 1
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in wait_gone(pids, grace_s):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_gone(pids, 5.0)
        ended += pids
    cgroups.clear(places.run)
    return ended


def forget(places: Places) -> None:
    """Nobody finds a node there any more."""
    for path in (places.node, places.control, places.notify, places.zygote):
        path.unlink(missing_ok=True)
    if places.doors.exists():
        import shutil  # most have none

        shutil.rmtree(places.doors)
        for folder in places.doors.parents[:2]:
            with suppress(OSError):  # other machines' are in it
                folder.rmdir()
