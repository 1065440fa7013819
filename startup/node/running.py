"""A process that a node looks after, as its parts know it."""

from __future__ import annotations

from dataclasses import dataclass

from agentkit.names import AgentId, Incarnation


@dataclass(frozen=True, slots=True)
class Running:
    """One life of one slot. Whoever has it in a table closes the pidfd."""

    id: AgentId
    incarnation: Incarnation
    pid: int
    pidfd: int
    log_start: int = 0  #: size of its log before it was forked
