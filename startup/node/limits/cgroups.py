"""What both versions of cgroups have in common: where they are mounted, where we are in them, and folders that hold processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:  # commands look here for what a dead node left, and start in less time than that takes
    from startup.plan.limits import Limits, Usage

#: How the names of folders begin that are ours.
PREFIX: Final = "agentkit."

#: File in a run directory: bases, one on each line.
BASES: Final = "cgroups"

#: Controller -> folder of one process and all below it; version 2 has one hierarchy, called "".
Cage = Mapping[str, Path]


class Unavailable(Exception):
    """This machine does not let us; the sentence says why."""


class Cgroups(Protocol):
    """One version of cgroups, writable by us. Methods raise OSError where the kernel refuses."""

    kind: str  #: as `node status` shows it
    holds: tuple[str, ...]  #: of memory, cpu, pids

    def bases(self) -> list[Path]:
        """Folders below which cages are made."""
        ...

    def make(self, name: str, limits: Limits) -> Cage: ...

    def find(self, pid: int) -> Cage | None:
        """That of a process which an earlier node has forked."""
        ...

    def usage(self, cage: Cage) -> Usage: ...

    def forbid_forks(self, cage: Cage) -> None:
        """From now on nothing in it multiplies, so that killing it comes to an end."""
        ...


class Mount(NamedTuple):
    point: Path
    root: str  #: what of the hierarchy is mounted there
    controllers: frozenset[str]  #: version 1; empty: version 2


def mounts(text: str | None = None) -> list[Mount]:
    """Of cgroups, from /proc/self/mountinfo."""
    found = []
    for line in (_text("/proc/self/mountinfo") if text is None else text).splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 4 and kind and kind[0] in ("cgroup", "cgroup2"):
            options = frozenset(kind[2].split(",")) if kind[0] == "cgroup" and len(kind) > 2 else frozenset()
            found.append(Mount(Path(_unescaped(fields[4])), _unescaped(fields[3]), options))
    return found


def own_paths(pid: int | str = "self") -> dict[str, str]:
    """Controller ("" for version 2) -> path of a process in that hierarchy; {} when it is gone."""
    paths: dict[str, str] = {}
    for line in _text(f"/proc/{pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def folder_of(mount: Mount, path: str) -> Path | None:
    """Where the cgroup `path` is seen below `mount`; None when it is not."""
    if mount.root != "/":
        if path != mount.root and not path.startswith(f"{mount.root}/"):
            return None
        path = path[len(mount.root) :]
    return mount.point / path.lstrip("/")


def put(file: Path, value: str | int) -> None:
    """Tell the kernel. A write of its own, as its answer is that of the write."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def number(file: Path, name: str = "") -> int:
    """The number in a file, or that of its line `name`; 0 when there is none."""
    for line in _text(file).splitlines():
        words = line.split()
        if words and words[-1].isdigit() and (not name or words[0] == name):
            return int(words[-1])
    return 0


def members(folder: Path) -> list[int]:
    """Pids in it; [] when it is gone."""
    return [int(line) for line in _text(folder / "cgroup.procs").split() if line.isdigit()]


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def remove(cage: Cage) -> bool:
    """Whether nothing of it is left; not while there are processes in it."""
    is_gone = True
    for folder in cage.values():
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            is_gone = False
    return is_gone


def bases_of(run: Path) -> list[Path]:
    """Where nodes of this run directory had cages, wherever they were started from, as far as it is still there."""
    bases = (Path(line) for line in _text(run / BASES).splitlines())
    return [base for base in bases if base.name.startswith(PREFIX) and base.is_dir()]


def folders_in(base: Path) -> list[Path]:
    """Its cages, those of one controller."""
    try:
        return [folder for folder in base.iterdir() if folder.is_dir()]
    except OSError:
        return []


def clear(run: Path) -> None:
    """Removes cages and bases in which nothing lives any more; for a machine without a node."""
    for base in bases_of(run):
        for folder in (*folders_in(base), base):
            remove({"": folder})


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
