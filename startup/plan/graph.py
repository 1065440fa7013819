"""The dependency graph of a fleet: levels, the longest path, who needs whom. Pure over the resolved fleet.

Edges go from an agent to what it depends on. With several slots behind a name any one fulfils the edge, so the graph has
an edge to each. Cycles are no graph to start from: they are found here too, for those who show a fleet that has some.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from agentkit.names import AgentId
from startup.plan.closure import closure
from startup.spec.cycles import Cycle, cycles
from startup.spec.fleet import AgentSpec, Fleet

Edges = Mapping[AgentId, tuple[AgentId, ...]]


@dataclass(frozen=True, slots=True)
class Graph:
    """Enabled agents in file order, with the edges among them."""

    needs: Edges
    needed_by: Edges

    @classmethod
    def of(cls, fleet: Fleet, *, only_required: bool = False) -> Graph:
        """`only_required`: without the edges that do not keep an agent from starting."""
        enabled = {spec.id: spec for spec in fleet.agents if spec.enabled}
        known = frozenset(enabled)
        needs = {id: _targets(spec, known, only_required) for id, spec in enabled.items()}
        needed_by: dict[AgentId, list[AgentId]] = {id: [] for id in enabled}
        for id, targets in needs.items():
            for target in targets:
                needed_by[target].append(id)
        return cls(needs, {id: tuple(ids) for id, ids in needed_by.items()})

    def levels(self) -> tuple[tuple[AgentId, ...], ...]:
        """Level 0 needs nobody, level n needs somebody of level n-1; file order within. graphlib.CycleError for a cycle."""
        depth = self._depths(lambda _: 1)
        levels: dict[int, list[AgentId]] = defaultdict(list)
        for id in self.needs:
            levels[int(depth[id]) - 1].append(id)
        return tuple(tuple(levels[number]) for number in sorted(levels))

    def order(self) -> tuple[AgentId, ...]:
        """Each after all that it needs, level by level; reversed, it is the order to stop in. graphlib.CycleError for a cycle."""
        return tuple(id for level in self.levels() for id in level)

    def longest_path(self, cost: Callable[[AgentId], float] = lambda _: 1.0) -> tuple[AgentId, ...]:
        """The chain with the highest sum of `cost`, in start order: with measured times it is what a start waited for.
        Empty for an empty graph; graphlib.CycleError for a cycle."""
        depth = self._depths(cost)
        if not depth:
            return ()
        path = [max(self.needs, key=depth.__getitem__)]
        while targets := self.needs[path[-1]]:
            path.append(max(targets, key=depth.__getitem__))
        return tuple(reversed(path))

    def with_needs(self, ids: Iterable[AgentId]) -> frozenset[AgentId]:
        """`ids` and all that they need, directly or not: what `up A B` brings along."""
        return closure(self.needs, ids)

    def with_dependants(self, ids: Iterable[AgentId]) -> frozenset[AgentId]:
        """`ids` and all that need them, directly or not: what `stop --with-dependants` stops."""
        return closure(self.needed_by, ids)

    def cycles(self) -> tuple[Cycle, ...]:
        """Every cycle, as strings of ids (startup.spec.cycles)."""
        return cycles({str(id): [str(target) for target in targets] for id, targets in self.needs.items()})

    def _depths(self, cost: Callable[[AgentId], float]) -> dict[AgentId, float]:
        """Cost of the longest chain that ends in each agent."""
        depth: dict[AgentId, float] = {}
        for id in TopologicalSorter(self.needs).static_order():
            depth[id] = cost(id) + max((depth[target] for target in self.needs[id]), default=0.0)
        return depth


def _targets(spec: AgentSpec, known: frozenset[AgentId], only_required: bool) -> tuple[AgentId, ...]:
    edges = (edge for edge in spec.dependencies if edge.required or not only_required)
    return tuple(dict.fromkeys(id for edge in edges for id in edge.agents if id in known))
