"""A cluster without processes: one Reconciler per machine, virtual time, actions performed by a table of behaviours.

It also checks, all the time, what must never happen: two processes of one slot of which neither is held back by a gate, a start
before the required dependencies are up, a stop while a dependant that goes too is alive."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from agentkit.names import AgentId, Incarnation
from startup.plan import ending, swap, transitions
from startup.plan.actions import Abort, Action, Fork, ForkBeside, Kill, OpenListeners, ProbeExternal, Release, Terminate
from startup.plan.phase import ALIVE, UP, Phase
from startup.plan.reconcile import Reconciler
from startup.plan.revision import Revision, Rollout
from startup.plan.rollback import rolled_back
from startup.plan.rollout import Failure
from startup.plan.row import AgentRow
from startup.plan.rows import Place, row_of


@dataclass
class Behaviour:
    """What one agent's processes do; `fails`: how many of its starts end with exit 1; `parks`: they hand over."""

    ready_after_s: float | None = 0.1
    fails: int = 0
    ignores_sigterm: bool = False
    stops_after_s: float = 0.05
    parks: bool = False


@dataclass
class Life:
    """One process."""

    id: AgentId
    incarnation: Incarnation
    is_gated: bool = False  #: must not begin `run` and `@every`
    is_parked: bool = False  #: does not start before its gate opens
    takes_calls: bool = False


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
        self.lives: dict[Incarnation, Life] = {}
        self.steps = 0
        self.failures: list[Failure] = []
        self.base: Revision | None = None
        self.watch: Callable[[], None] = lambda: None  #: called at every instant at which something happened
        self._count = itertools.count(1)
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    @property
    def processes(self) -> dict[AgentId, Incarnation]:
        """The processes that the slots are known by: of two, the one that the reconciler means."""
        found = {life.id: life.incarnation for life in self.lives.values()}
        return {id: self.machines[id.machine].core.processes[id].incarnation for id in found}

    def of(self, id: AgentId) -> list[Life]:
        """The processes of one slot."""
        return [life for life in self.lives.values() if life.id == id]

    def at(self, delay_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now_s + delay_s, next(self._count), happen))

    def desire(self, revision: Revision) -> None:
        for name in self.machines:
            self._desire(name, revision)
        self.settle()

    def _desire(self, name: str, revision: Revision) -> None:
        """One machine takes it, and the others hear of that."""
        self.machines[name].core.desire(revision, self.now_s)
        for other in self.machines.values():
            other.core.see_revision(name, revision.number, self.now_s)

    def apply(self, revision: Revision, base: Revision, *, after_s: float = 0.0, **rollout: Any) -> Revision:
        """Roll it out; the machines take it one after the other, `after_s` apart. Who fails is in `failures`, and rolled back."""
        facts = {"base": base.number, "base_digest": base.digest(), "max_unavailable": 1} | rollout
        revision = replace(revision, rollout=Rollout(**facts))
        self.base = base
        for place, name in enumerate(self.machines):
            self.at(place * after_s, partial(self._desire, name, revision))
        return revision

    def _failed(self, machine: Machine, failure: Failure) -> None:
        self.failures.append(failure)
        current = machine.core.desired.revision
        assert current is not None
        assert current.rollout is not None
        assert self.base is not None
        if current.rollout.on_failure == "roll back":
            back = rolled_back(current, self.base, 0.0)
            for place, name in enumerate(self.machines):
                if self.machines[name].core.desired.revision is current:
                    self.at(place * 0.01, partial(self._follow, name, current, back))

    def _follow(self, name: str, current: Revision, back: Revision) -> None:
        if self.machines[name].core.desired.revision is current:
            self._desire(name, back)

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
            self.watch()

    def _step(self, machine: Machine) -> bool:
        self.steps += 1
        step = machine.core.step(self.now_s)
        machine.wake_at_s, machine.finished = step.wake_at_s, step.finished
        for action in step.actions:
            machine.performed.append(action)
            self._perform(machine.core, action)
        if step.failure is not None:
            self._failed(machine, step.failure)
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
                assert not self.of(id)
            case Fork(id):
                assert not self.of(id), f"{id} runs twice"
                self._fork(core, id)
            case ForkBeside(id):
                assert [life.is_gated for life in self.of(id)] == [False], f"nobody to succeed: {self.of(id)}"
                self._fork_beside(core, id)
            case Release(id, incarnation):
                self._release(id, incarnation)
            case Terminate(id, incarnation):
                life = self.lives.get(incarnation)
                if life is None:
                    return
                if self.of(id) == [life]:
                    self._check_order(core, id)
                behaviour = self.behaviours.get(id, Behaviour())
                life.takes_calls = False
                if life.is_parked or not behaviour.ignores_sigterm:
                    after_s = 0.001 if life.is_parked else behaviour.stops_after_s
                    self.at(after_s, partial(self.exit, id, 0, incarnation))
            case Abort(id, incarnation) | Kill(id, incarnation):
                self.at(0.001, partial(self.exit, id, -9, incarnation))
            case ProbeExternal(name):
                if name in self.externals:
                    core.external_answered(name, self.now_s)

    def _fork(self, core: Reconciler, id: AgentId) -> None:
        spec = core.desired.specs[id]
        for dependency in spec.dependencies:
            if dependency.required and dependency.agents and dependency.condition == "healthy":
                assert any(core.see(other).phase in UP for other in dependency.agents), f"{id} before {dependency.name}"
        life = self._born(id)
        core.on(
            id, lambda p: transitions.forked(p, int(life.incarnation) + 100, life.incarnation, self.now_s), self.now_s
        )
        self._begin(life)

    def _fork_beside(self, core: Reconciler, id: AgentId) -> None:
        life = self._born(id)
        life.is_gated = True
        core.on(id, lambda p: swap.ordered(p, life.incarnation), self.now_s)
        pid = int(life.incarnation) + 100
        change = partial(transitions.forked, pid=pid, incarnation=life.incarnation, now_s=self.now_s)
        core.on(id, change, self.now_s, incarnation=life.incarnation)
        life.is_parked = self.behaviours.get(id, Behaviour()).parks
        if life.is_parked:
            self.at(0.02, partial(self._parked, life))
        else:
            self._begin(life)

    def _born(self, id: AgentId) -> Life:
        life = Life(id, Incarnation(next(self._count)))
        self.lives[life.incarnation] = life
        self.forks.setdefault(id, []).append(self.now_s)
        return life

    def _begin(self, life: Life) -> None:
        behaviour = self.behaviours.get(life.id, Behaviour())
        if behaviour.fails > 0:
            behaviour.fails -= 1
            self.at(0.02, partial(self.exit, life.id, 1, life.incarnation))
        elif behaviour.ready_after_s is not None:
            self.at(behaviour.ready_after_s, partial(self.ready, life.id, life.incarnation))

    def _parked(self, life: Life) -> None:
        if life.is_parked:
            core = self.machines[life.id.machine].core
            change = partial(transitions.progressed, phase=Phase.PARKED, now_s=self.now_s)
            core.on(life.id, change, self.now_s, incarnation=life.incarnation)

    def _release(self, id: AgentId, incarnation: Incarnation) -> None:
        assert not [life for life in self.of(id) if life.incarnation != incarnation], f"not alone: {self.of(id)}"
        life = self.lives.get(incarnation)
        if life is None:
            return  # it has just ended, too
        was_parked, life.is_gated, life.is_parked = life.is_parked, False, False
        if was_parked:
            self._begin(life)

    def _check_order(self, core: Reconciler, id: AgentId) -> None:
        for above in core.desired.dependants.get(id, ()):
            if not core.desired.wants(id) and not core.desired.wants(above):
                assert self.phase(above) not in ALIVE or above.machine not in self.machines, f"{id} before {above}"

    def ready(self, id: AgentId, incarnation: Incarnation) -> None:
        if incarnation not in self.lives:
            return
        self.lives[incarnation].takes_calls = True
        core = self.machines[id.machine].core
        core.on(id, lambda p: transitions.ready(p, self.now_s), self.now_s, incarnation=incarnation)

    def exit(self, id: AgentId, code: int, incarnation: Incarnation | None = None) -> None:
        incarnation = incarnation or self.processes.get(id)
        if incarnation is None or self.lives.pop(incarnation, None) is None:
            return
        core = self.machines[id.machine].core
        core.on(id, lambda p: ending.gone(p, self.now_s), self.now_s, incarnation=incarnation)
        core.on(id, lambda p: ending.exited(p, code, self.now_s, Random(1)), self.now_s, incarnation=incarnation)
