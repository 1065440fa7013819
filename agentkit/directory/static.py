"""A fixed table of names: for tests, scripts, and agents started by hand without a node."""

from __future__ import annotations

from collections.abc import Mapping

from agentkit.directory.base import INBOX_LOCAL, AgentRecord, unambiguous
from agentkit.names import AgentId, AgentName, MachineName


class StaticDirectory:
    """Knows what it was given, and what `put` adds."""

    def __init__(self, endpoints: Mapping[str, str] | None = None, *, here: str = "local") -> None:
        """`endpoints`: name, or `machine/name#slot`, -> "tcp://host:port"."""
        self.version = 0
        self._here = here
        self._records: dict[AgentId, AgentRecord] = {}
        for name, endpoint in (endpoints or {}).items():
            id = AgentId.parse(name) if "/" in name else AgentId(MachineName(here), AgentName(name))
            self.put(AgentRecord(id=id, incarnation=0, phase="ready", endpoints={INBOX_LOCAL: endpoint}))  # type: ignore[arg-type]

    def put(self, record: AgentRecord) -> None:
        """Add or replace one instance."""
        self._records[record.id] = record
        self.version += 1

    async def lookup(self, name: str) -> tuple[AgentRecord, ...]:
        return self.cached(name)

    def cached(self, name: str) -> tuple[AgentRecord, ...]:
        return unambiguous(name, tuple(self._records.values()), here=self._here)

    def ids(self) -> tuple[AgentId, ...]:
        """Everybody in the table."""
        return tuple(self._records)

    async def names(self) -> tuple[AgentId, ...]:
        return self.ids()

    async def close(self) -> None:
        """Nothing to end."""
