"""Who of several instances gets the next call. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agentkit.directory.base import AgentRecord
from agentkit.errors import Unreachable
from agentkit.names import AgentId

#: Phases in which a call may be sent because it will be served: now, or when the process is up (it waits in the backlog).
#: `stopping` too: a crashed or restarted agent is that for some ms, and one that is stopped for good sends the call away.
_COMING: Final = frozenset(
    {"waiting", "pending", "backoff", "forked", "importing", "starting", "hibernated", "draining", "stopping"}
)


def choose(name: str, records: tuple[AgentRecord, ...], in_flight: Callable[[AgentId], int], turn: int) -> AgentRecord:
    """The ready instance with the fewest calls in flight from here; `turn` breaks ties, so that equals take turns.

    Without a ready one, one that is coming up. Unreachable when all of them are beyond help (failed, stopped, ...)."""
    if len(records) == 1 and records[0].phase == "ready":
        return records[0]
    ready = [record for record in records if record.phase == "ready"]
    eligible = ready or [record for record in records if record.phase in _COMING and record.endpoints]
    if not eligible:
        phases = ", ".join(f"{record.id} is {record.phase}" for record in records)
        raise Unreachable(f"{name}: {phases}", details={"phases": {str(record.id): record.phase for record in records}})
    least = min(in_flight(record.id) for record in eligible)
    equals = [record for record in eligible if in_flight(record.id) == least]
    return equals[turn % len(equals)]
