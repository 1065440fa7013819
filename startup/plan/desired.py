"""A revision as the reconciler reads it: who is wanted, who depends on whom, which barrier stands before whom.
Built once each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

from agentkit.names import AgentId
from startup.plan.revision import Revision
from startup.spec.fleet import AgentSpec


class Desired:
    """The indexes of one revision. `previous` adds the edges of agents that this revision removes: they still stop
    in order."""

    def __init__(self, revision: Revision | None, previous: Desired | None = None) -> None:
        self.revision = revision
        specs = revision.fleet.agents if revision else ()
        self.specs: Mapping[AgentId, AgentSpec] = {spec.id: spec for spec in specs}
        self._stopped = revision.stopped if revision else frozenset()
        self._unstarted = revision.unstarted if revision else {}
        self._down = revision is None or revision.down
        phases = revision.fleet.phases if revision else ()
        self._phase_of_group = {group: number for number, groups in enumerate(phases) for group in groups}
        #: id -> those that depend on it, in file order, on all machines.
        self.dependants: dict[AgentId, list[AgentId]] = defaultdict(list)
        before = previous.specs if previous else {}
        #: Of the revision before, what this one does not have.
        self.gone: Mapping[AgentId, AgentSpec] = {id: spec for id, spec in before.items() if id not in self.specs}
        for spec in (*specs, *self.gone.values()):
            for target in {target for dependency in spec.dependencies for target in dependency.agents}:
                self.dependants[target].append(spec.id)

    def wants(self, id: AgentId) -> bool:
        """Whether a process of it shall run."""
        return not self.why_not(id)

    def why_not(self, id: AgentId) -> str:
        """Why it shall not run, in words; empty when it shall."""
        spec = self.specs.get(id)
        if spec is None:
            return "removed from the fleet"
        if not spec.enabled:
            return "disabled"
        if spec.problem:
            return spec.problem
        if id in self._stopped:
            return f"not started: {self._unstarted[id]}" if id in self._unstarted else "stopped by operator"
        return "the cluster is going down" if self._down else ""

    def barrier(self, spec: AgentSpec) -> int:
        """How many of the fleet's phases must be up before it may start."""
        return self._phase_of_group.get(spec.group, 0)

    @cached_property
    def gates(self) -> list[frozenset[AgentId]]:
        """Per phase: the agents that it needs up to be passed. Optional ones hold no phase back."""
        gates: list[set[AgentId]] = [set() for _ in range(1 + max(self._phase_of_group.values(), default=-1))]
        for spec in self.specs.values():
            number = self._phase_of_group.get(spec.group)
            if number is not None and spec.required and self.wants(spec.id):
                gates[number].add(spec.id)
        return [frozenset(gate) for gate in gates]

    def behind(self, id: AgentId) -> tuple[AgentId, ...]:
        """The agents whose phase waits for that of `id`."""
        own = self._phase_of_group.get(self.specs[id].group) if id in self.specs else None
        if own is None:
            return ()
        return tuple(spec.id for spec in self.specs.values() if self.barrier(spec) > own)

    @cached_property
    def at_port(self) -> Mapping[tuple[str, int], AgentId]:
        """(machine, port) -> whose it is."""
        return {(spec.machine, port): spec.id for spec in self.specs.values() for port in spec.ports}

    @cached_property
    def heights(self) -> Mapping[AgentId, int]:
        """How long a chain of dependants hangs on each agent: what has the longest is forked first, as it decides
        the end."""
        heights: dict[AgentId, int] = {}
        for root in self.specs:
            stack = [(root, False)]
            while stack:
                id, children_done = stack.pop()
                if children_done:
                    heights[id] = 1 + max((heights.get(above, 0) for above in self.dependants.get(id, ())), default=-1)
                elif id not in heights:
                    heights[id] = 0  # a cycle, if one got this far, ends here
                    stack.append((id, True))
                    stack.extend((above, False) for above in self.dependants.get(id, ()) if above not in heights)
        return heights
