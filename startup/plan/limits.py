"""What an agent may use, whether it used more, and how that is said. Pure; startup/node/limits/bounds.py holds processes to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from startup.spec.fleet import AgentSpec

#: Processes and threads of an agent that has a limit of memory or CPU, and none of these: an agent with numeric libraries has some 100.
DEFAULT_PIDS: Final = 1024

_MIB: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: as much as there is."""

    memory_bytes: int | None = None
    request_bytes: int | None = None  #: what the kernel leaves it when memory is short
    cpu: float | None = None  #: cores
    pids: int | None = None  #: processes and threads

    @property
    def any(self) -> bool:
        return self != NONE


NONE: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What is known of one process and all below it."""

    memory_bytes: int = 0  #: the most it had, or what it has now where nobody keeps the most
    oom_kills: int = 0  #: processes that the kernel killed for the limit
    forks_refused: int = 0
    pids: int = 0  #: processes and threads now; 0: not counted


def limits_of(spec: AgentSpec) -> Limits:
    """The limits of one process of `spec`."""
    resources = spec.resources
    held = resources.memory_limit_bytes is not None or resources.cpu_limit is not None
    return Limits(
        memory_bytes=resources.memory_limit_bytes,
        request_bytes=resources.memory_request_bytes,
        cpu=resources.cpu_limit,
        pids=resources.pids_limit if resources.pids_limit is not None else DEFAULT_PIDS if held else None,
    )


def over(limits: Limits, usage: Usage) -> str:
    """Why it has to be started anew; "" when it keeps to its limits."""
    if limits.memory_bytes is not None and (usage.oom_kills or usage.memory_bytes > limits.memory_bytes):
        return f"memory limit {in_mib(limits.memory_bytes)}, used {in_mib(max(usage.memory_bytes, 1))}"
    if limits.pids is not None and usage.pids > limits.pids:
        return f"pids limit {limits.pids}, has {usage.pids} processes and threads"
    return ""


def refused(limits: Limits, usage: Usage, known: int) -> str:
    """What is reported of a process that may not fork any more: the kernel holds it, it need not end. `known`: refusals told before."""
    if usage.forks_refused <= known or known:
        return ""
    return f"pids limit {limits.pids} reached: the kernel refuses it more processes and threads"


def in_mib(size_bytes: int) -> str:
    """Rounded up: who is over a limit is shown to be."""
    return f"{-(-size_bytes // _MIB):,} MiB"
