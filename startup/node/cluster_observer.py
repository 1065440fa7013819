"""What other machines say, and Consul where they don't: into the table and the reconciler, and on to whoever else is concerned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from startup.node.fence import Fence
from startup.node.key_operations import KeyOperations
from startup.node.mesh.mesh import Mesh
from startup.node.registry.registry import Registry
from startup.node.rollbacks import Rollbacks
from startup.node.store import Revisions
from startup.node.table import ClusterTable
from startup.node.turns import Turns
from startup.plan.phase import ALIVE, Phase
from startup.plan.row import AgentRow

Answers = Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]

#: Rows of agents that the fleet does not have stay while these are their phases.
_KEPT: Final = ALIVE | {Phase.HIBERNATED}


class ClusterObserver:
    """Implements mesh_callbacks.MeshCallbacks. The mesh is made with it, so the other parts are given to it afterwards, before the mesh
    starts."""

    mesh: Mesh
    fence: Fence
    registry: Registry
    key_operations: KeyOperations
    rollbacks: Rollbacks

    def __init__(self, machine: str, turns: Turns, table: ClusterTable, revisions: Revisions) -> None:
        self._machine = machine
        self._turns = turns
        self._core = turns.core
        self._table = table
        self._revisions = revisions
        self._answers: dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {}
        self._reached: frozenset[str] = frozenset()  # machines that Consul shows agents of

    def offer(self, answers: Answers) -> None:
        """Other machines may ask these of this one, by method."""
        self._answers.update(answers)

    # -- mesh_callbacks.MeshCallbacks

    def on_rows(self, machine: str, rows: list[AgentRow], *, generation: int, upto: int, is_all: bool) -> None:
        changed = self._table.merge(machine, rows, generation=generation, upto=upto, is_all=is_all)
        self._core.see_rows(changed, self._turns.now_s())
        self.fence.rows_told([(row.id, row.phase) for row in changed])
        self.forget_removed()
        self._turns.soon()

    def on_peers(self) -> None:
        self.key_operations.on_peers()
        self._table.silence(self.mesh.circle.silent())
        self.see_others()

    def on_revision(self, machine: str, number: int, digest: str) -> None:
        self._core.see_revision(machine, number, self._turns.now_s())
        self._turns.soon()
        self.rollbacks.heard(machine, number, digest)
        self.fence.heard(machine, (number, digest))

    def own_rows(self) -> list[AgentRow]:
        return self._table.of_machine(self._machine)

    def own_upto(self) -> int:
        return self._table.upto(self._machine)

    def rows_digest(self, machine: str, generation: int | None = None) -> str | None:
        return self._table.digest(machine, generation)

    def own_revision(self) -> tuple[int, str]:
        summary = self._revisions.summary()
        return (summary["number"], summary["digest"]) if summary else (0, "")

    def answers(self) -> Answers:
        return self._answers

    # -- what follows from it

    def see_others(self) -> None:
        """Who answers is another now, or Consul has news of agents whose node does not."""
        reached, now_s = self.registry.reached, self._turns.now_s()
        if reached or self._reached:
            self._core.see_rows([row for row in self._table.rows() if row.id.machine in reached | self._reached], now_s)
            self._reached = reached
        self._core.see_unreachable(self.mesh.circle.unreachable() - reached, now_s)
        self.forget_removed()
        self._turns.soon()

    def forget_removed(self) -> None:
        """Rows of agents that the fleet no longer has, on machines that don't tell of themselves any more."""
        specs, told = self._core.desired.specs, {self._machine, *self.mesh.circle.speaking()}
        rows = (row for row in self._table.rows() if row.id not in specs and row.id.machine not in told)
        self._table.forget([row.id for row in rows if row.phase not in _KEPT])
