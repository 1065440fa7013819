"""cgroups version 2: one hierarchy, of which a part has to be ours: by root, or by delegation (systemd's `Delegate=yes`).

A folder that has processes can't hand controllers down, so those that are in ours already move to a leaf beside the agents' first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from startup.node.limits.cgroups import (
    PREFIX,
    Cage,
    Unavailable,
    folder_of,
    members,
    mounts,
    number,
    own_paths,
    put,
    remove,
)
from startup.plan.limits import Limits, Usage

_CONTROLLERS: Final = ("memory", "cpu", "pids")
#: Where the processes go that are in a delegated folder itself: nodes, zygotes, and the command that started them.
LEAF: Final = f"{PREFIX}nodes"
_PERIOD_US: Final = 100_000
_LEAST_US: Final = 1_000
_WAY_OUT: Final = (
    "run the node as a unit (`agentkit node unit`, systemd 254 or later), or start it with "
    "`systemd-run --user --scope -p Delegate=yes agentkit up`"
)


class Cgroup2:
    """Implements cgroups.Cgroups."""

    kind = "cgroup v2"

    def __init__(self, base: Path, controllers: tuple[str, ...]) -> None:
        """`controllers`: of those that `base` hands down."""
        self._base = base
        self.holds: tuple[str, ...] = tuple(name for name in _CONTROLLERS if name in controllers)

    @staticmethod
    def foreseen() -> Path:
        """Where our folder would be. Unavailable where no part of the hierarchy is ours. Changes nothing."""
        found = next((mount for mount in mounts() if not mount.controllers), None)
        if found is None:
            raise Unavailable("cgroup v2 is not mounted here")
        path = own_paths().get("", "/")
        own = folder_of(found, path.partition(f"/{PREFIX}")[0] or "/")
        if own is None or not own.is_dir():
            raise Unavailable(f"cgroup v2: {path} is not below {found.point}")
        # systemd could not start such a unit again, unless it puts its processes into the leaf by itself
        is_unit = own.name.endswith(".service") and not path.endswith(f"/{LEAF}")
        parent = own
        if is_unit or not _is_ours(own):
            if os.geteuid() or not _is_root(found.point):
                raise Unavailable(f"cgroup v2: {own} is not delegated to us; {_WAY_OUT}")
            parent = found.point
        there = (parent / "cgroup.controllers").read_text().split()
        if "pids" not in there:
            raise Unavailable(f"cgroup v2: {parent} has no `pids` controller, but {' '.join(there) or 'none'}")
        return parent

    @classmethod
    def open(cls, name: str) -> Cgroup2:
        """With a folder `name` of our own there. Unavailable like `foreseen`."""
        parent = cls.foreseen()
        base = parent / name
        try:
            if not _is_root(parent):
                _move_into_leaf(parent)
            _hand_down(parent)
            base.mkdir(exist_ok=True)
            held = _hand_down(base)
        except OSError as exc:
            raise Unavailable(f"cgroup v2: {parent} can't be used ({exc.strerror}); {_WAY_OUT}") from None
        return cls(base, held)

    def bases(self) -> list[Path]:
        return [self._base]

    def make(self, name: str, limits: Limits) -> Cage:
        folder = self._base / name
        folder.mkdir(exist_ok=True)
        try:
            for file, value in _settings(limits, self.holds).items():
                if (folder / file).exists() or file in ("memory.max", "cpu.max", "pids.max"):  # those have to be held
                    put(folder / file, value)
        except OSError:
            remove({"": folder})
            raise
        return {"": folder}

    def find(self, pid: int) -> Cage | None:
        path = own_paths(pid).get("", "/")
        for mount in mounts():
            folder = None if mount.controllers else folder_of(mount, path)
            if folder is not None and folder.parent.name.startswith(PREFIX):
                return {"": folder}
        return None

    def usage(self, cage: Cage) -> Usage:
        folder = cage[""]
        return Usage(
            memory_bytes=number(folder / "memory.peak")
            or number(folder / "memory.current"),  # no peak before Linux 5.19
            oom_kills=number(folder / "memory.events", "oom_kill"),
            forks_refused=number(folder / "pids.events", "max"),
        )

    def forbid_forks(self, cage: Cage) -> None:
        if "pids" in self.holds:
            put(cage[""] / "pids.max", 0)


def _settings(limits: Limits, holds: tuple[str, ...]) -> Mapping[str, str | int]:
    found: dict[str, str | int] = {}
    if limits.memory_bytes is not None and "memory" in holds:
        # all of it goes at once: half an agent helps nobody
        found |= {"memory.max": limits.memory_bytes, "memory.swap.max": 0, "memory.oom.group": 1}
    if limits.request_bytes is not None and "memory" in holds:
        found["memory.low"] = limits.request_bytes
    if limits.cpu is not None and "cpu" in holds:
        found["cpu.max"] = f"{max(_LEAST_US, round(limits.cpu * _PERIOD_US))} {_PERIOD_US}"
    if limits.pids is not None and "pids" in holds:
        found["pids.max"] = limits.pids
    return found


def _is_root(folder: Path) -> bool:
    """Of the whole machine: it alone may have processes and hand controllers down, and it has no type."""
    return not (folder / "cgroup.type").exists()


def _is_ours(folder: Path) -> bool:
    """Delegated: systemd says so in an attribute, or gave it to our user; and the top of a container's own hierarchy is root's there."""
    for name in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(folder, name) == b"1":
                return os.access(folder, os.W_OK)
        except OSError:
            continue
    uid = os.geteuid()
    if uid:
        return folder.stat().st_uid == uid and os.access(folder / "cgroup.subtree_control", os.W_OK)
    is_top = own_paths().get("", "").partition(f"/{PREFIX}")[0] in ("", "/")
    return is_top and not _is_root(folder)


def _move_into_leaf(parent: Path) -> None:
    leaf = parent / LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(10):  # until none is left: one may fork meanwhile
        left = members(parent)
        if not left:
            return
        for pid in left:
            try:
                put(leaf / "cgroup.procs", pid)
            except ProcessLookupError:
                continue


def _hand_down(folder: Path) -> tuple[str, ...]:
    there = (folder / "cgroup.controllers").read_text().split()
    held = tuple(name for name in _CONTROLLERS if name in there)
    put(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in held))
    return held
