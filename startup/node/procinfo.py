"""What /proc tells of processes. Whatever is gone, or not ours to see, is None or left out, never an exception."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
#: State of a TCP socket that listens, in /proc/net/tcp.
_LISTEN: Final = "0A"


class ProcStat(NamedTuple):
    """One line of /proc/PID/stat. (pid, start_ticks) names a process for good, pid alone does not."""

    pid: int
    state: str  #: Z: ended, not reaped yet
    ppid: int
    pgrp: int
    session: int
    start_ticks: int  #: since the machine booted

    @property
    def is_alive(self) -> bool:
        return self.state not in ("Z", "X")


class PortHolder(NamedTuple):
    pid: int | None  #: None: somebody else's process
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})" if self.pid else self.command


def stat(pid: int) -> ProcStat | None:
    data = _read(f"/proc/{pid}/stat", 4096)
    if not data:
        return None
    state, *fields = data.rpartition(b")")[2].split(None, 20)
    return ProcStat(pid, state.decode(), int(fields[0]), int(fields[1]), int(fields[2]), int(fields[18]))


def start_ticks(pid: int) -> int | None:
    """When a process that is there began, in ticks since the machine booted; None: it is gone, or ended and not reaped yet."""
    found = stat(pid)
    return found.start_ticks if found is not None and found.is_alive else None


def all_stats() -> Iterator[ProcStat]:
    """Every process of this machine (of this pid namespace)."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - 3 times as fast as paths, and this runs for every stop
        if name.isdigit() and (found := stat(int(name))) is not None:
            yield found


def started_s(pid: int) -> float | None:
    """When the process started, in seconds since the epoch, to about 10 ms."""
    found = stat(pid)
    if found is None:
        return None
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - found.start_ticks / _TICKS_PER_S)


def pss_bytes(pid: int) -> int | None:
    """Memory of a process with what it shares divided by those that share it. The kernel walks its pages for it: 0.1-1 ms."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return None


def cpu_s(pid: int) -> float | None:
    """Processor time of a process and of the children that it has waited for, since it began."""
    data = _read(f"/proc/{pid}/stat", 4096)
    if not data:
        return None
    return sum(map(int, data.rpartition(b")")[2].split(None, 15)[11:15])) / _TICKS_PER_S


def memory_mb() -> tuple[float, float]:
    """This machine's memory, and what of it can be had."""
    found = dict(line.split(b":", 1) for line in _read("/proc/meminfo", 4096).splitlines() if b":" in line)
    total, free = (int(found[key].split()[0]) / 1024 if key in found else 0.0 for key in (b"MemTotal", b"MemAvailable"))
    return round(total, 1), round(free, 1)


def environ(pid: int) -> dict[str, str]:
    """Environment of a process as it was at its exec (what forks of the zygote show: linux.mark_environment)."""
    pairs = (os.fsdecode(entry).partition("=") for entry in environ_bytes(pid).split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def environ_bytes(pid: int) -> bytes:
    """The same as it stands in memory: NAME=value, each ending in NUL."""
    return _read(f"/proc/{pid}/environ", 1 << 20)


def command(pid: int) -> str:
    """Its command line or title, shortened; "" when it has none."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(300).replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def port_holders(port: int) -> list[PortHolder]:
    """Who listens on TCP `port` in this network namespace, agents and strangers before nodes and zygotes; [] when nobody does."""
    inodes = dict(_listening(port))
    if not inodes:
        return []
    holders = [
        PortHolder(int(name), command(int(name)) or "a process without a command line")
        for name in os.listdir("/proc")  # noqa: PTH208
        if name.isdigit() and not inodes.keys().isdisjoint(_socket_inodes(name))
    ]
    if not holders:
        return [PortHolder(None, f"a process of uid {uid}") for uid in sorted(set(inodes.values()))]
    return sorted(holders, key=lambda holder: holder.command.startswith(("agentkit: node", "agentkit: zygote")))


def _read(path: str, most: int) -> bytes:
    """A file of /proc in one read; a third of the time that `open` takes, and a stop reads hundreds."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, most)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _listening(port: int) -> Iterator[tuple[str, str]]:
    """(inode, uid) of sockets that listen on `port`."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError), open(table, encoding="ascii") as file:
            next(file)
            for line in file:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9], fields[7]


def _socket_inodes(pid: str) -> Iterator[str]:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115 - the target is no path
                if target.startswith("socket:["):
                    yield target[8:-1]
