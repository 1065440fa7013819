"""How the agents of a machine come to a revision that is rolled out, without I/O: whom is it the turn of, and when is it over.

    held -> under way -> through          replaced, and serves; nothing of its predecessor is left
                      -> failed           the new one did not become ready: no further one begins, on no machine

- The agents that served and are to be replaced do it in the order of the dependency graph, over all machines: those that may are
  the first `max_unavailable` of the ones that are not through yet. Every node works that out for itself, from its own processes
  and from what the others' rows say (`rolled`). A row that comes late makes a node wait, never go ahead.
- Nobody is replaced while something that it requires is, or is on its way up.
- Agents that exchange their ports are replaced together, however many that are.
- Whoever did not serve takes its new entry at once; agents that are new start as ever. Neither counts.
- What the revision does not have any more goes when everything else is through, so that nobody loses a dependency that it still has;
  at once, if it moves to another machine or a new agent needs its port.
- A new agent that fails halts a rollout if it is required.
- A revision that stops, starts or scales agents carries the rollout on; what it adds by itself is not judged.

Who is through is not looked at again: what happens later is the restart budget's. A machine that has another revision is waited for
`MACHINES_WITHIN_S`, one that is unreachable not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from graphlib import CycleError
from typing import Final

from agentkit.names import AgentId
from startup.plan import process as proc
from startup.plan.desired import Desired
from startup.plan.graph import Graph
from startup.plan.phase import ALIVE, COMING_UP, GOING, UP, Phase
from startup.plan.process import Process
from startup.plan.revision import Rollout
from startup.plan.row import AgentRow
from startup.plan.slots import Slots
from startup.spec.fleet import AgentSpec, Dependency

#: An operator's command reaches all machines well within this; one that does not have the revision then is left to itself.
MACHINES_WITHIN_S: Final = 3.0

_ON_ITS_WAY: Final = COMING_UP | {Phase.PENDING, Phase.WAITING}
_IN_TRANSIT: Final = COMING_UP | GOING | {Phase.PARKED}


class _State(StrEnum):
    HELD = "held"
    UNDER_WAY = "under way"
    THROUGH = "through"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rollout goes no further."""

    id: AgentId
    reason: str


class Rolling:
    """The rollout of the revision that one node has; there is none unless `apply` made it."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._rollout: Rollout | None = None
        self._number = 0
        self._since_s = 0.0
        self._order: tuple[AgentId, ...] = ()
        self._served: set[AgentId] = set()  #: own agents that are to be replaced and are not through
        self._fresh: set[AgentId] = set()  #: own ones that come without having served, and are not up yet
        self._begun: set[AgentId] = set()
        self._leaving: set[AgentId] = set()  #: own ones that the fleet does not have any more, and that go last
        self._numbers: dict[str, int] = {}  #: machine -> the revision that it has
        self._failure: Failure | None = None

    # -- asked

    def holds(self, id: AgentId) -> bool:
        """Whether the process of an own slot goes on as it is for now, whatever the revision says."""
        return id in self._leaving or (id in self._served and id not in self._begun)

    def take_failure(self) -> Failure | None:
        """Why it has just been halted by an own agent; told once."""
        failure, self._failure = self._failure, None
        return failure

    def wake_at_s(self) -> float | None:
        """When machines that do not have this revision are no longer waited for."""
        until_s = self._since_s + MACHINES_WITHIN_S
        return until_s if self._is_open and self._late() and self._slots.now_s < until_s else None

    # -- told

    def see_revision(self, machine: str, number: int) -> None:
        self._numbers[machine] = number

    def revised(self, before: Desired) -> None:
        """The slots have a revision in the place of the one in `before`."""
        slots, desired = self._slots, self._slots.desired
        revision = desired.revision
        self._served, self._fresh, self._begun, self._leaving = set(), set(), set(), set()
        self._failure = None
        self._rollout = revision.rollout if revision is not None and not revision.down else None
        if revision is None or self._rollout is None:
            return
        self._number, self._since_s = revision.number, slots.now_s
        self._order = _ordered(desired)
        for id, spec in desired.specs.items():
            if id.machine == slots.machine and desired.wants(id):
                self._sort(id, spec, before)
        self._leaving = self._last_to_leave()
        own = [p for p in slots.processes.values() if p.id in desired.specs]
        self._came_through(p for p in own if p.id not in self._served and p.id not in self._fresh)

    def _sort(self, id: AgentId, spec: AgentSpec, before: Desired) -> None:
        p = self._slots.processes.get(id)
        if p is not None and p.phase in ALIVE and proc.runs(p, spec):
            return
        if p is not None and p.phase is Phase.READY:
            self._served.add(id)
        elif self._is_own and before.revision is not None and before.specs.get(id) != spec:
            self._fresh.add(id)

    def _last_to_leave(self) -> set[AgentId]:
        """The processes of agents that are gone from the fleet, but for those that somebody waits for."""
        specs, at_once = self._slots.desired.specs, _leaves_at_once(self._slots.desired)
        ready = [p.id for p in self._slots.processes.values() if p.phase is Phase.READY]
        return {id for id in ready if id not in specs and id not in at_once}

    @property
    def _is_own(self) -> bool:
        """Whether the rollout is that of this very revision, and not carried on by one that somebody made since then."""
        return self._rollout is not None and self._number == self._rollout.base + 1

    # -- decided

    @property
    def _is_open(self) -> bool:
        return bool(self._served or self._fresh or self._leaving)

    def advance(self) -> None:
        """Take note of who is through, and let go on whose turn it is: those are looked at again."""
        if self._rollout is None or not self._is_open:
            return
        states = {id: self._state(id) for id in (*self._served, *self._fresh)}
        through = [id for id, state in states.items() if state is _State.THROUGH]
        self._forget(through)
        self._came_through(self._slots.processes[id] for id in through if id in self._slots.processes)
        for id in [id for id, state in states.items() if state is _State.FAILED]:
            self._failed(self._slots.processes[id])
        if self._is_halted() or (self._slots.now_s < self._since_s + MACHINES_WITHIN_S and self._late()):
            return
        undone = self._undone()
        self._begin(undone, self._rollout.max_unavailable)
        if self._leaving and not undone and not self._fresh:
            leaving, self._leaving = self._leaving, set()
            self._slots.look_at(leaving)

    def _begin(self, undone: list[AgentId], limit: int) -> None:
        free = limit - sum(self._is_in_transit(id) for id in undone)
        for id in undone[:limit]:
            if free <= 0 or not self.holds(id):
                continue
            together = self._slots.exchanging(id)
            if all(self._is_in_order(it, undone, together) for it in together):
                begun = [it for it in together if self.holds(it)]
                free -= len(begun)
                self._begun.update(begun)
                self._slots.look_at(begun)

    def _state(self, id: AgentId) -> _State:
        p, desired = self._slots.processes.get(id), self._slots.desired
        if not desired.wants(id):
            return _State.THROUGH
        if p is None:
            return _State.UNDER_WAY
        spec = desired.specs[id]
        counts = id in self._served or spec.required
        match p.phase:
            case Phase.FAILED | Phase.BACKOFF:
                return _State.FAILED if counts else _State.THROUGH
            case Phase.SKIPPED:
                return _State.FAILED if id in self._served else _State.THROUGH
            case Phase.COMPLETED | Phase.HIBERNATED:
                return _State.THROUGH
        if p.phase not in ALIVE:
            return _State.UNDER_WAY
        if proc.runs(p, spec):
            return _State.THROUGH if p.phase is Phase.READY and p.swap is None else _State.UNDER_WAY
        if p.refused and p.refused == spec.digest():
            return _State.FAILED
        is_still = p.phase is Phase.READY and p.swap is None and id not in self._begun
        return _State.HELD if is_still else _State.UNDER_WAY

    def _undone(self) -> list[AgentId]:
        """In order, all that are to be replaced and are not through, on all machines that take part."""
        return [id for id in self._order if id in self._served or self._is_undone_elsewhere(id)]

    def _is_undone_elsewhere(self, id: AgentId) -> bool:
        row = self._part_of(id)
        return row is not None and abs(row.rolled) != self._number and row.phase in ALIVE

    def _part_of(self, id: AgentId) -> AgentRow | None:
        """The row of an agent on another machine that takes part in this rollout."""
        if id.machine == self._slots.machine or self._numbers.get(id.machine) != self._number:
            return None
        return self._slots.row(id)

    def _is_in_transit(self, id: AgentId) -> bool:
        if id in self._served:
            return self._state(id) is _State.UNDER_WAY
        row = self._slots.row(id)
        return row is not None and (bool(row.roll) or row.phase in _IN_TRANSIT)

    def _is_in_order(self, id: AgentId, undone: Iterable[AgentId], together: frozenset[AgentId]) -> bool:
        """Whether all that it requires has been replaced, and is there; `together`: what can't be before it is."""
        spec = self._slots.desired.specs.get(id)
        if spec is None:
            return True
        left = set(undone) - together
        required = [
            it for it in spec.dependencies
            if it.required and it.external is None and not together.intersection(it.agents)
        ]  # fmt: skip
        return not any(left.intersection(it.agents) or self._is_expected(it) for it in required)

    def _is_expected(self, dependency: Dependency) -> bool:
        """Whether none of its agents is up, and one will be."""
        phases = {self._slots.see(id).phase for id in dependency.agents}
        return not phases & UP and bool(phases & _ON_ITS_WAY)

    def _is_halted(self) -> bool:
        """Whether an agent failed in this rollout, here or elsewhere."""
        if self._rollout is None or self._rollout.on_failure == "go on":
            return False
        own = any(p.rolled == -self._number for p in self._slots.processes.values())
        rows = (self._part_of(id) for id in self._order)
        return own or any(row is not None and row.rolled == -self._number for row in rows)

    def _late(self) -> list[str]:
        """Other machines that do not have this revision, though they could."""
        others = {str(id.machine) for id in self._order} - {self._slots.machine}
        return [it for it in others if self._numbers.get(it) != self._number and not self._slots.is_unreachable(it)]

    # -- noted

    def _came_through(self, processes: Iterable[Process]) -> None:
        for p in list(processes):
            self._slots.put(p, replace(p, rolled=self._number))

    def _failed(self, p: Process) -> None:
        self._slots.put(p, replace(p, rolled=-self._number))
        self._forget([p.id])
        if self._rollout is not None and self._rollout.on_failure != "go on" and self._failure is None:
            why = p.roll_error or p.reason or p.last_error or p.last_exit or p.phase.value
            self._failure = Failure(p.id, why)

    def _forget(self, ids: Iterable[AgentId]) -> None:
        for id in ids:
            self._served.discard(id)
            self._fresh.discard(id)


def _leaves_at_once(desired: Desired) -> set[AgentId]:
    """Of what the fleet does not have any more: what is on another machine now, what has a port that is another's now, and what
    depends on such a one and goes, too."""
    names = {(id.name, id.slot): id.machine for id in desired.specs}
    ports = {(spec.machine, port) for spec in desired.specs.values() for port in spec.ports}
    found = {
        id for id, spec in desired.gone.items()
        if names.get((id.name, id.slot), id.machine) != id.machine or any((id.machine, port) in ports for port in spec.ports)
    }  # fmt: skip
    unseen = list(found)
    while unseen:
        above = [id for id in desired.dependants.get(unseen.pop(), ()) if id in desired.gone and id not in found]
        found.update(above)
        unseen += above
    return found


def _ordered(desired: Desired) -> tuple[AgentId, ...]:
    assert desired.revision is not None
    try:
        return Graph.of(desired.revision.fleet, only_required=True).order()
    except CycleError:  # no file with one is taken; a node does not fall over one all the same
        return tuple(desired.specs)
