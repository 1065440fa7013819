"""A cluster without processes: one Reconciler per machine, virtual time, actions performed by a table of behaviours.

It also checks, all the time, what must never happen: two processes of one slot, a start before the required dependencies
are up, a stop while a dependant that goes too is alive."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from agentkit.names import AgentId, Incarnation
from startup.plan import process as proc
from startup.plan.actions import Abort, Action, Fork, Kill, OpenListeners, ProbeExternal, Terminate
from startup.plan.phase import ALIVE, UP, Phase
from startup.plan.reconcile import Reconciler
from startup.plan.revision import Revision
from startup.plan.row import AgentRow
from startup.plan.rows import Place, row_of


@dataclass
class Behaviour:
    """What one agent's processes do; `fails`: how many of its starts end with exit 1."""

    ready_after_s: float | None = 0.1
    fails: int = 0
    ignores_sigterm: bool = False
    stops_after_s: float = 0.05


@dataclass
class Machine:
    core: Reconciler
    rows: dict[AgentId, AgentRow] = field(default_factory=dict)
    performed: list[Action] = field(default_factory=list)
    finished: bool = False
    wake_at_s: float | None = None


class Simulation:
    def __init__(self, *names: str, seed: int = 0) -> None:
        self.now_s = 1000.0
        self.machines = {name: Machine(Reconciler(name, Random(seed))) for name in names or ("m",)}
        self.behaviours: dict[AgentId, Behaviour] = {}
        self.externals: set[str] = set()
        self.forks: dict[AgentId, list[float]] = {}
        self.processes: dict[AgentId, Incarnation] = {}
        self.steps = 0
        self._count = itertools.count(1)
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._count), happen))

    def desire(self, revision: Revision) -> None:
        for machine in self.machines.values():
            machine.core.desire(revision, self.now_s)
        self.settle()

    def phase(self, id: AgentId) -> Phase:
        return self.machines[id.machine].core.see(id).phase

    def phases(self) -> dict[str, str]:
        return {id.instance: row.phase.value for m in self.machines.values() for id, row in sorted(m.rows.items())}

    def settle(self) -> None:
        """Step every machine until none has anything to do at this instant."""
        while [machine for machine in self.machines.values() if self._step(machine)]:
            pass

    def run(self, until_s: float) -> None:
        """Let `until_s` seconds pass, event by event."""
        end_s = self.now_s + until_s
        while True:
            wakes = [m.wake_at_s for m in self.machines.values() if m.wake_at_s is not None]
            next_s = min([*wakes, *(entry[0] for entry in self._due[:1])], default=None)
            if next_s is None or next_s > end_s:
                self.now_s = end_s
                return
            self.now_s = max(self.now_s, next_s)
            while self._due and self._due[0][0] <= self.now_s:
                heapq.heappop(self._due)[2]()
            self.settle()

    def _step(self, machine: Machine) -> bool:
        self.steps += 1
        step = machine.core.step(self.now_s)
        machine.wake_at_s, machine.finished = step.wake_at_s, step.finished
        for action in step.actions:
            machine.performed.append(action)
            self._perform(machine.core, action)
        changed = [row_of(machine.core.processes[id], Place(), self.steps) for id in step.changed]
        changed += [row_of(p, Place(), self.steps) for p in step.removed]
        machine.rows.update((row.id, row) for row in changed)
        for other in self.machines.values():
            if other is not machine and changed:
                other.core.see_rows(changed, self.now_s)
        return bool(step.actions or changed)

    def _perform(self, core: Reconciler, action: Action) -> None:
        match action:
            case OpenListeners(id):
                assert id not in self.processes
            case Fork(id):
                self._fork(core, id)
            case Terminate(id):
                assert id in self.processes
                self._check_order(core, id)
                behaviour = self.behaviours.get(id, Behaviour())
                if not behaviour.ignores_sigterm:
                    self.at(behaviour.stops_after_s, partial(self.exit, id, 0, self.processes[id]))
            case Abort(id) | Kill(id):
                self.at(0.001, partial(self.exit, id, -9, self.processes[id]))
            case ProbeExternal(name):
                if name in self.externals:
                    core.external_answered(name, self.now_s)

    def _fork(self, core: Reconciler, id: AgentId) -> None:
        assert id not in self.processes, f"{id} runs twice"
        spec = core.desired.specs[id]
        for dependency in spec.dependencies:
            if dependency.required and dependency.agents and dependency.condition == "healthy":
                assert any(core.see(other).phase in UP for other in dependency.agents), f"{id} before {dependency.name}"
        incarnation = self.processes[id] = Incarnation(next(self._count))
        self.forks.setdefault(id, []).append(self.now_s)
        core.on(id, lambda p: proc.forked(p, int(incarnation) + 100, incarnation, self.now_s), self.now_s)
        behaviour = self.behaviours.get(id, Behaviour())
        if behaviour.fails > 0:
            behaviour.fails -= 1
            self.at(0.02, partial(self.exit, id, 1, incarnation))
        elif behaviour.ready_after_s is not None:
            self.at(behaviour.ready_after_s, partial(self.ready, id, incarnation))

    def _check_order(self, core: Reconciler, id: AgentId) -> None:
        for above in core.desired.dependants.get(id, ()):
            if not core.desired.wants(id) and not core.desired.wants(above):
                assert self.phase(above) not in ALIVE or above.machine not in self.machines, f"{id} before {above}"

    def ready(self, id: AgentId, incarnation: Incarnation) -> None:
        core = self.machines[id.machine].core
        core.on(id, lambda p: proc.ready(p, self.now_s), self.now_s, incarnation=incarnation)

    def exit(self, id: AgentId, code: int, incarnation: Incarnation | None = None) -> None:
        if self.processes.get(id) is None or (incarnation or self.processes[id]) != self.processes[id]:
            return
        core = self.machines[id.machine].core
        gone = self.processes.pop(id)
        core.on(id, lambda p: proc.exited(p, code, self.now_s, Random(1)), self.now_s, incarnation=gone)
