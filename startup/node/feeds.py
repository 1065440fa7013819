"""What goes on being told: all rows to `watch`, the records of one name to `directory`. Only what changed, packed once for all."""

from __future__ import annotations

from typing import Any, Protocol

from agentkit.directory.base import AgentRecord
from agentkit.names import AgentId
from agentkit.wire.frames import pack
from startup.node.table import ClusterTable
from startup.plan.row import AgentRow


class Ear(Protocol):
    """Where frames go (control_server.Conversation)."""

    def write(self, frame: bytes) -> None: ...


class Feeds:
    """The subscriptions of one node."""

    def __init__(self, table: ClusterTable) -> None:
        self._table = table
        self._watchers: dict[tuple[Ear, int], None] = {}
        self._by_name: dict[str, dict[tuple[Ear, int], None]] = {}
        self._told: dict[AgentId, AgentRecord] = {}  #: what the directory's subscribers know, for names that have some
        table.listen(self._on_rows)

    def watch(self, ear: Ear, id: int) -> None:
        """All rows now, changed ones from now on."""
        ear.write(pack([id, "event", {"rows": [row.to_wire() for row in self._table.rows()]}]))
        self._watchers[ear, id] = None

    def unwatch(self, ear: Ear, id: int) -> None:
        self._watchers.pop((ear, id), None)

    def follow(self, ear: Ear, id: int, name: str) -> None:
        """The records of every agent called `name` now (perhaps none), and all of them again when one changes."""
        rows = self._table.of_name(name)
        ear.write(pack([id, "event", self._records(name)]))
        self._by_name.setdefault(name, {})[ear, id] = None
        self._told.update((row.id, row.record()) for row in rows)

    def unfollow(self, ear: Ear, id: int, name: str) -> None:
        followers = self._by_name.get(name, {})
        followers.pop((ear, id), None)
        if not followers:
            self._by_name.pop(name, None)

    def _records(self, name: str) -> dict[str, list[dict[str, Any]]]:
        return {"records": [row.record().to_wire() for row in self._table.of_name(name)]}

    def _on_rows(self, rows: list[AgentRow]) -> None:
        if self._watchers:
            told = [row.to_wire() for row in rows]
            for ear, id in tuple(self._watchers):
                ear.write(pack([id, "event", {"rows": told}]))
        changed: set[str] = set()
        for row in rows:
            if row.id.name in self._by_name:
                record = row.record()
                if self._told.get(row.id) != record:
                    self._told[row.id] = record
                    changed.add(row.id.name)
        for name in sorted(changed):
            event = self._records(name)
            for ear, id in tuple(self._by_name[name]):
                ear.write(pack([id, "event", event]))
