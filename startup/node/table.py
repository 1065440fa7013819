"""The rows of the whole cluster as this node knows them, and who is told when they change.

Own rows come from the reconciler, the others' from the mesh. A machine's node is the only one that changes its rows. What it says may
come twice, late, or in another order over another connection: a row gives way only to one of a later life of that node, or of the same
life and a higher version. So all copies that have heard the same agree, whatever the way it took.

The rows of a machine that does not answer are shown as `unreachable`; what it said last is kept, and shown again as soon as it answers.
With `registry: consul`, what passes there is shown of them instead."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.row import AgentRow

#: Told the rows that have just changed, once per change; must not raise.
Listener: TypeAlias = Callable[[list[AgentRow]], None]

#: Where nothing runs there is nothing that could be out of reach.
_NOTHING_THERE: Final = frozenset({Phase.STOPPED, Phase.COMPLETED})


class ClusterTable:
    def __init__(self) -> None:
        self._rows: dict[AgentId, AgentRow] = {}  #: as they were told
        self._shown: dict[AgentId, AgentRow] = {}
        self._generations: dict[AgentId, int] = {}  #: of rows that others told
        self._upto: dict[str, tuple[int, int]] = {}  #: machine -> generation and version of what was told last
        self._by_name: dict[str, set[AgentId]] = {}
        self._silent: frozenset[str] = frozenset()
        self._sighted: dict[AgentId, AgentRow] = {}  #: as Consul says
        self._digests: dict[str, str] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` at every change from now on; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def get(self, id: AgentId) -> AgentRow | None:
        """As its own node told it."""
        return self._rows.get(id)

    def rows(self) -> list[AgentRow]:
        """All of them, by id."""
        return [self._shown[id] for id in sorted(self._shown)]

    def of_machine(self, machine: str) -> list[AgentRow]:
        """As its own node told them."""
        return [row for id, row in self._rows.items() if id.machine == machine]

    def of_name(self, name: str) -> list[AgentRow]:
        """The rows of every agent called `name`, on all machines."""
        return [self._shown[id] for id in sorted(self._by_name.get(name, ()))]

    def upto(self, machine: str) -> int:
        """The highest version that any row of `machine` has had."""
        return self._upto.get(machine, (0, 0))[1]

    def digest(self, machine: str, generation: int | None = None) -> str | None:
        """Equal for equal versions of the same rows; None: some are from before `generation`."""
        rows = self.of_machine(machine)
        if generation is not None and any(self._generations.get(row.id, 0) < generation for row in rows):
            return None
        if machine not in self._digests:
            versions = sorted(f"{row.id} {row.version}" for row in rows)
            self._digests[machine] = hashlib.blake2b("\n".join(versions).encode(), digest_size=8).hexdigest()
        return self._digests[machine]

    def update(self, rows: Iterable[AgentRow]) -> list[AgentRow]:
        """Take own rows that are newer than what is known; tell and return those."""
        changed = [row for row in rows if (known := self._rows.get(row.id)) is None or known.version < row.version]
        for row in changed:
            self._reached(row.id.machine, 0, row.version)
        self._store(changed)
        return changed

    def merge(
        self, machine: str, rows: Iterable[AgentRow], *, generation: int, upto: int, is_all: bool
    ) -> list[AgentRow]:
        """Take what another machine's node said, as of its version `upto`; tell and return what that changed.

        What is gone from there is told as `stopped` for the last time."""
        told = {row.id: row for row in rows if row.id.machine == machine}
        changed = [row for row in told.values() if self._is_news(row, generation)]
        gone: list[AgentRow] = []
        if is_all:
            missing = (row for row in self.of_machine(machine) if row.id not in told)
            gone = [row for row in missing if (self._generations.get(row.id, 0), row.version) <= (generation, upto)]
        elif self._upto.get(machine, (0, 0)) > (generation, upto):
            changed = [row for row in changed if row.id in self._rows]  # late: it may have been removed since
        self._reached(machine, generation, upto)
        self._generations.update((row.id, generation) for row in changed)
        changed += [replace(row, phase=Phase.STOPPED, pid=None, reason="its machine no longer has it") for row in gone]
        self._store(changed)
        self.forget([row.id for row in gone])
        return changed

    def silence(self, machines: frozenset[str]) -> None:
        """These do not answer now (all of them): what is shown of theirs, and of those that do again."""
        changed, self._silent = machines ^ self._silent, machines
        again = [row for row in self._rows.values() if row.id.machine in changed]
        if again:
            self._store(again)

    def sight(self, rows: Mapping[AgentId, AgentRow]) -> None:
        """What Consul shows of other machines' agents (all of it): shown where their own node does not answer, or is not known."""
        before, self._sighted = self._sighted, dict(rows)
        shown = []
        for id in sorted(before.keys() | rows.keys()):
            row = self._rows.get(id) or rows.get(id)
            gone = (
                replace(before[id], phase=Phase.UNREACHABLE, reason="no longer passing in Consul")
                if id in before
                else None
            )
            seen = self._show(row) if row is not None else gone
            if seen is not None and seen != self._shown.get(id):
                shown.append(seen)
                self._shown[id] = seen
                self._by_name.setdefault(id.name, set()).add(id)
        self._tell(shown)

    def forget(self, ids: Iterable[AgentId]) -> None:
        """Rows that the fleet no longer has; their last change has been told."""
        for id in ids:
            self._drop(id)

    def _is_news(self, row: AgentRow, generation: int) -> bool:
        known = self._rows.get(row.id)
        return known is None or (self._generations.get(row.id, 0), known.version) < (generation, row.version)

    def _reached(self, machine: str, generation: int, version: int) -> None:
        self._upto[machine] = max(self._upto.get(machine, (0, 0)), (generation, version))

    def _store(self, changed: list[AgentRow]) -> None:
        shown = [self._show(row) for row in changed] if self._silent else changed
        for row, seen in zip(changed, shown, strict=True):
            self._rows[row.id] = row
            self._shown[row.id] = seen
            self._by_name.setdefault(row.id.name, set()).add(row.id)
            self._digests.pop(row.id.machine, None)
        self._tell(shown)

    def _tell(self, shown: list[AgentRow]) -> None:
        if shown:
            for listener in tuple(self._listeners):
                listener(shown)

    def _show(self, row: AgentRow) -> AgentRow:
        if row.id.machine not in self._silent:
            return row
        sighted = self._sighted.get(row.id)
        if sighted is not None and sighted.incarnation >= row.incarnation:
            return sighted
        if row.phase in _NOTHING_THERE:
            return row
        reason = f"its machine {row.id.machine} does not answer"
        return replace(row, phase=Phase.UNREACHABLE, reason=reason, waiting_for=(), because="")

    def _drop(self, id: AgentId) -> None:
        self._rows.pop(id, None)
        if self._shown.pop(id, None) is not None:
            self._generations.pop(id, None)
            self._digests.pop(id.machine, None)
            same_name = self._by_name[id.name]
            same_name.discard(id)
            if not same_name:
                del self._by_name[id.name]
