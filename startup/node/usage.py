"""What a machine and its agents use of processor and memory, for `top`. Read from /proc when somebody asks, and only then.

    mesh.usage {memory}     -> this machine's figures
    operation `usage`       -> those of every machine, by name; None: it did not answer

CPU is told as seconds since each process began: whoever asks twice has the share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from agentkit.clock import SYSTEM_CLOCK
from startup.node import procinfo, vitals

#: How long other machines' answers are waited for, in seconds.
OTHERS_S: Final = 2.0

Answer = Callable[[Mapping[str, Any]], Awaitable[Any]]


class Here(Protocol):
    """This machine's processes (node_status.NodeStatus)."""

    def pids(self) -> tuple[int | None, Mapping[str, int]]:
        """Of the zygote, and of agents by id."""
        ...


class Others(Protocol):
    """The other machines (mesh.Mesh)."""

    def others(self) -> list[str]:
        """Those that are there as far as is known, and those that are missed."""
        ...

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any:
        """What one of them answers; None when it does not in time."""
        ...


class Usage:
    """`operations` for those who ask this node, `answers` for other nodes."""

    def __init__(self, machine: str, here: Here, others: Others) -> None:
        self._machine = machine
        self._here = here
        self._others = others
        self.operations: dict[str, Answer] = {"usage": self._everywhere}
        self.answers: dict[str, Answer] = {"mesh.usage": self._own}

    async def _everywhere(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`but`: machines that are asked by somebody else."""
        but = {str(machine) for machine in arguments.get("but") or ()}
        asked = {"memory": bool(arguments.get("memory"))}
        others = [machine for machine in self._others.others() if machine not in but]
        told = await asyncio.gather(
            self._own(asked), *(self._others.ask(machine, "mesh.usage", asked, OTHERS_S) for machine in others)
        )
        return {"machines": dict(zip((self._machine, *others), told, strict=True))}

    async def _own(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        zygote, agents = self._here.pids()
        # on a thread: 15 us for each process, with memory up to 1 ms
        return await asyncio.to_thread(figures, os.getpid(), zygote, agents, memory=bool(asked.get("memory")))


def figures(node: int, zygote: int | None, agents: Mapping[str, int], *, memory: bool) -> dict[str, Any]:
    """Of one machine. `at_s`: when, on a clock of its own; memory of processes (PSS) only where `memory` says so: it is dear."""
    total_mb, free_mb = procinfo.memory_mb()
    return {
        "at_s": SYSTEM_CLOCK.now_s(),
        "load": list(os.getloadavg()),
        "cores": os.cpu_count() or 1,
        "memory_mb": total_mb,
        "memory_free_mb": free_mb,
        "node": _of(node, memory),
        "zygote": _of(zygote, memory) if zygote else None,
        "agents": {id: found for id, pid in agents.items() if (found := _of(pid, memory)) is not None},
    }


def _of(pid: int, memory: bool) -> dict[str, Any] | None:
    cpu_s = procinfo.cpu_s(pid)
    if cpu_s is None:
        return None
    return {"pid": pid, "cpu_s": cpu_s, **({"memory_mb": vitals.pss_mb(pid)} if memory else {})}
