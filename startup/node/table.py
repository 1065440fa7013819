"""The rows of the whole cluster as this node knows them, and who is told when they change.

Own rows come from the reconciler, the others' from the mesh. A machine's node is the only one that changes its rows; what it
says when it (re)connects replaces everything that was known of that machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from agentkit.names import AgentId
from startup.plan.row import AgentRow

#: Told the rows that have just changed, once per change; must not raise.
Listener: TypeAlias = Callable[[list[AgentRow]], None]


class ClusterTable:
    def __init__(self) -> None:
        self._rows: dict[AgentId, AgentRow] = {}
        self._by_name: dict[str, set[AgentId]] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` at every change from now on; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def get(self, id: AgentId) -> AgentRow | None:
        return self._rows.get(id)

    def rows(self) -> list[AgentRow]:
        """All of them, by id."""
        return [self._rows[id] for id in sorted(self._rows)]

    def of_machine(self, machine: str) -> list[AgentRow]:
        return [row for id, row in self._rows.items() if id.machine == machine]

    def of_name(self, name: str) -> list[AgentRow]:
        """The rows of every agent called `name`, on all machines."""
        return [self._rows[id] for id in sorted(self._by_name.get(name, ()))]

    def update(self, rows: Iterable[AgentRow]) -> list[AgentRow]:
        """Take rows that are newer than what is known; tell and return those."""
        changed = [row for row in rows if (known := self._rows.get(row.id)) is None or known.version < row.version]
        self._store(changed)
        return changed

    def replace_machine(self, machine: str, rows: Iterable[AgentRow]) -> list[AgentRow]:
        """All that there is of `machine`, whatever the versions: a node that was started anew may count from below."""
        told = {row.id: row for row in rows}
        for id in [id for id in self._rows if id.machine == machine and id not in told]:
            self._drop(id)
        changed = [row for id, row in told.items() if self._rows.get(id) != row]
        self._store(changed)
        return changed

    def forget(self, ids: Iterable[AgentId]) -> None:
        """Rows that the fleet no longer has; their last change has been told."""
        for id in ids:
            self._drop(id)

    def _store(self, changed: list[AgentRow]) -> None:
        for row in changed:
            self._rows[row.id] = row
            self._by_name.setdefault(row.id.name, set()).add(row.id)
        if changed:
            for listener in tuple(self._listeners):
                listener(changed)

    def _drop(self, id: AgentId) -> None:
        if self._rows.pop(id, None) is not None:
            same_name = self._by_name[id.name]
            same_name.discard(id)
            if not same_name:
                del self._by_name[id.name]
