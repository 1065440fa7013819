"""cgroups version 1: a hierarchy for each controller. `pids` holds every agent and what it starts, `memory` and `cpu` those that have
limits of these: a folder of `pids` costs 10 us and joining it 0.1 ms, one of `memory` three times as much."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from startup.node.limits.cgroups import PREFIX, Cage, Unavailable, folder_of, mounts, number, own_paths, put, remove
from startup.plan.limits import Limits, Usage

_CONTROLLERS: Final = ("pids", "memory", "cpu")
#: CPU is given out in pieces of this length, in microseconds: the kernel's default.
_PERIOD_US: Final = 100_000
#: The least that the kernel takes for a share of a period.
_LEAST_US: Final = 1_000


class Cgroup1:
    """Implements cgroups.Cgroups."""

    kind = "cgroup v1"

    def __init__(self, bases: Mapping[str, Path]) -> None:
        """Controller -> folder, which is ours to make."""
        self._bases = dict(bases)
        self.holds: tuple[str, ...] = tuple(name for name in ("memory", "cpu", "pids") if name in self._bases)

    @staticmethod
    def foreseen() -> Mapping[str, Path]:
        """Controller -> the cgroup that we are in ourselves: what holds us holds our agents. Unavailable where `pids` is not writable.
        Changes nothing."""
        paths, parents = own_paths(), {}
        for mount in mounts():
            for controller in mount.controllers.intersection(_CONTROLLERS):
                # a node that an agent's process started would make its folders in the agent's
                path = paths.get(controller, "/").partition(f"/{PREFIX}")[0] or "/"
                folder = folder_of(mount, path)
                if folder is not None and folder.is_dir():
                    parents[controller] = folder
        if "pids" not in parents:
            raise Unavailable("cgroup v1 has no `pids` controller here")
        if not os.access(parents["pids"], os.W_OK):
            raise Unavailable(f"cgroup v1: {parents['pids']} is not writable")
        return {controller: folder for controller, folder in parents.items() if os.access(folder, os.W_OK)}

    @classmethod
    def open(cls, name: str) -> Cgroup1:
        """With folders `name` of our own there. Unavailable like `foreseen`."""
        bases: dict[str, Path] = {}
        try:
            for controller, parent in cls.foreseen().items():
                bases[controller] = parent / name
                bases[controller].mkdir(exist_ok=True)
        except OSError as exc:
            remove(bases)
            raise Unavailable(f"cgroup v1: {exc.filename}: {exc.strerror}") from None
        return cls(bases)

    def bases(self) -> list[Path]:
        return list(self._bases.values())

    def make(self, name: str, limits: Limits) -> Cage:
        wanted = {
            "pids": True,
            "memory": limits.memory_bytes is not None or limits.request_bytes is not None,
            "cpu": limits.cpu is not None,
        }
        cage: dict[str, Path] = {}
        try:
            for controller, base in self._bases.items():
                if wanted[controller]:
                    folder = cage[controller] = base / name
                    folder.mkdir(exist_ok=True)
            self._limit(cage, limits)
        except OSError:
            remove(cage)
            raise
        return cage

    def find(self, pid: int) -> Cage | None:
        paths, cage = own_paths(pid), {}
        for mount in mounts():
            for controller in mount.controllers.intersection(_CONTROLLERS):
                folder = folder_of(mount, paths.get(controller, "/"))
                if folder is not None and folder.parent.name.startswith(PREFIX):
                    cage[controller] = folder
        return cage or None

    def usage(self, cage: Cage) -> Usage:
        memory, pids = cage.get("memory"), cage.get("pids")
        return Usage(
            memory_bytes=number(memory / "memory.max_usage_in_bytes") if memory else 0,
            oom_kills=number(memory / "memory.oom_control", "oom_kill") if memory else 0,
            forks_refused=number(pids / "pids.events", "max") if pids else 0,
        )

    def forbid_forks(self, cage: Cage) -> None:
        if pids := cage.get("pids"):
            put(pids / "pids.max", 0)

    def _limit(self, cage: Cage, limits: Limits) -> None:
        if limits.pids is not None:
            put(cage["pids"] / "pids.max", limits.pids)
        if (memory := cage.get("memory")) is not None:
            if limits.request_bytes is not None:
                put(memory / "memory.soft_limit_in_bytes", limits.request_bytes)
            if limits.memory_bytes is not None:
                put(memory / "memory.limit_in_bytes", limits.memory_bytes)
                # else what is over the limit would be swapped out, and swapping slows everybody down
                with_swap = memory / "memory.memsw.limit_in_bytes"
                if with_swap.exists():
                    put(with_swap, limits.memory_bytes)
        if (cpu := cage.get("cpu")) is not None and limits.cpu is not None:
            put(cpu / "cpu.cfs_period_us", _PERIOD_US)
            put(cpu / "cpu.cfs_quota_us", max(_LEAST_US, round(limits.cpu * _PERIOD_US)))
