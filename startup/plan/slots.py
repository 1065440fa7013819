"""What one node knows of every agent of the cluster, and whom a change concerns. Pure; decides nothing.

Every change of an own slot's process goes through `put`: it notes what is to be done, when to look again, whose row is no longer
what it was, and which slots have to be considered anew. Slots that nothing concerns are not looked at, so a step costs what changed,
not the size of the fleet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agentkit.names import AgentId
from startup.plan import swap
from startup.plan.actions import Action, CloseListeners
from startup.plan.barriers import Barriers
from startup.plan.blockers import Seen
from startup.plan.desired import Desired
from startup.plan.phase import ALIVE, COMING_UP, UP, Phase
from startup.plan.process import Outcome, Process
from startup.plan.revision import Revision
from startup.plan.row import AgentRow
from startup.plan.timers import Timers
from startup.spec.fleet import AgentSpec

#: Phases among which nobody else needs to be told of a move.
_ALIKE: Final = (COMING_UP, frozenset({Phase.PENDING, Phase.WAITING}))


@dataclass(frozen=True, slots=True)
class _Unseen:
    phase: Phase
    because: str = ""
    reason: str = ""
    away: str = ""


_NOT_YET: Final = _Unseen(Phase.PENDING)
_AWAY: Final = _Unseen(Phase.UNREACHABLE)


class Slots:
    """The memory of one node's mind: `processes` are its own, of the others it has rows."""

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.now_s = 0.0
        self.processes: dict[AgentId, Process] = {}
        self.dirty: dict[AgentId, None] = {}  #: to be considered; ordered, so that steps are the same in every run
        self.changed: set[AgentId] = set()
        self.removed: list[Process] = []
        self.begun_anew: dict[AgentId, None] = {}  #: that failed and begin anew: others may have to come with them
        self.actions: list[Action] = []
        self.timers = Timers()
        self._remote: dict[AgentId, AgentRow] = {}
        self._unreachable: frozenset[str] = frozenset()
        self._gone: set[AgentId] = set()  #: own slots that the fleet no longer has, and that are still there
        #: Own slots that have a port which is another one's now -> those.
        self._ceding: dict[AgentId, set[AgentId]] = {}
        self._up_since_s: dict[AgentId, float] = {}
        self.desired = Desired(None)
        self.barriers = Barriers(self.desired, self._phase)

    # -- what is known

    def see(self, id: AgentId) -> Seen:
        """Any agent of the cluster, as this node knows it."""
        if id.machine == self.machine:
            return self.processes.get(id, _NOT_YET)
        if id.machine in self._unreachable:
            return _AWAY
        return self._remote.get(id, _NOT_YET)

    def row(self, id: AgentId) -> AgentRow | None:
        """What another machine has last said of an agent, whether it answers now or not."""
        return self._remote.get(id)

    def is_unreachable(self, machine: str) -> bool:
        return machine in self._unreachable

    def is_away(self, id: AgentId) -> bool:
        return id.machine in self._unreachable or id not in self._remote

    def port_holder(self, spec: AgentSpec) -> AgentId | None:
        """Another own slot that still holds a port of `spec`: the fleet does not have it any more, or it has another port now."""
        return next((id for id in sorted(self._ceding) if spec.id in self._ceding[id] and self._holds(id, spec)), None)

    def _holds(self, id: AgentId, spec: AgentSpec) -> bool:
        p = self.processes.get(id)
        return p is not None and (p.phase in ALIVE or id in self._gone) and bool(set(spec.ports) & set(p.spec.ports))

    def exchanging(self, id: AgentId) -> frozenset[AgentId]:
        """`id` and the own slots that can't get their ports before it, or it before them."""
        ties = [{ceding, *others} for ceding, others in self._ceding.items()]
        found = {id}
        while more := [tie for tie in ties if tie & found and not tie <= found]:
            found = found.union(*more)
        return frozenset(found)

    def slowest_dependency(self, p: Process) -> str:
        """The dependency that came up last, if it came up while this one waited for it."""
        since = [(self._up_since_s.get(id, 0.0), id) for dependency in p.spec.dependencies for id in dependency.agents]
        at_s, id = max(since, default=(0.0, None))
        return str(id) if id is not None and at_s >= (p.stamps.wanted_s or 0.0) and at_s > 0.0 else ""

    def _phase(self, id: AgentId) -> Phase:
        return self.see(id).phase

    # -- what changes

    def desire(self, revision: Revision) -> None:
        """A new revision; every slot has to be considered."""
        self.desired = Desired(revision, self.desired)
        self.barriers = Barriers(self.desired, self._phase)
        self.look_at(spec.id for spec in self.desired.specs.values() if spec.machine == self.machine)
        self.look_at(self.processes)
        self._gone = {id for id in self.processes if id not in self.desired.specs}
        self._ceding = {id: others for id in self.processes if (others := self._takers(id))}

    def _takers(self, id: AgentId) -> set[AgentId]:
        """Who has a port now that this one's process has, and its entry has not any more."""
        spec = self.desired.specs.get(id)
        ceded = set(self.processes[id].spec.ports) - set(spec.ports if spec else ())
        return {taker for port in ceded if (taker := self.desired.at_port.get((self.machine, port))) is not None}

    def look_at(self, ids: Iterable[AgentId]) -> None:
        self.dirty.update(dict.fromkeys(ids))

    def see_rows(self, rows: Iterable[AgentRow]) -> None:
        """Rows of agents on other machines."""
        for row in rows:
            before, known = self._phase(row.id), self._remote.get(row.id)
            self._remote[row.id] = row
            if known is not None and _has_begun_anew(known, row):
                self.begun_anew[row.id] = None
            self._moved(row.id, before, self._phase(row.id))

    def see_unreachable(self, machines: frozenset[str]) -> None:
        """The machines that do not answer now (all of them)."""
        ids = [id for id in {**self._remote, **self.desired.specs} if id.machine in machines ^ self._unreachable]
        before = [self._phase(id) for id in ids]
        self._unreachable = machines
        for id, phase in zip(ids, before, strict=True):
            self._moved(id, phase, self._phase(id))

    def put(self, before: Process | None, outcome: Process | Outcome) -> None:
        """What became of an own slot, `before` of which is what it was."""
        after, actions = outcome if isinstance(outcome, tuple) else (outcome, [])
        if before is not None and after.swap is not None:
            after, actions = swap.settled(before, after, actions, self.now_s)
        self.actions.extend(actions)
        if after is before:
            return
        self.processes[after.id] = after
        self.changed.add(after.id)
        self.timers.changed(before, after)
        if after.id in self._ceding and before is not None and before.phase in ALIVE and after.phase not in ALIVE:
            self.look_at(self._ceding[after.id])
        if before is not None and after.restarts > before.restarts and after.phase is Phase.WAITING:
            self.begun_anew[after.id] = None
        if after.swap is not None or (before is not None and before.swap is not None):
            self._swapped(before, after)
        if before is None or before.phase is not after.phase:
            self.dirty[after.id] = None
            self._moved(after.id, before.phase if before else Phase.PENDING, after.phase)

    def drop(self, p: Process, last: Process) -> None:
        """A slot that the fleet no longer has; `last` is what is told of it."""
        del self.processes[p.id]
        self.removed.append(last)
        self.changed.discard(p.id)
        self.actions.append(CloseListeners(p.id))
        self._moved(p.id, p.phase, last.phase)
        if p.id in self._gone:
            self._gone.discard(p.id)
            self.look_at(it.id for it in self.processes.values() if it.phase is Phase.WAITING)

    def _swapped(self, before: Process | None, after: Process) -> None:
        """The two processes of a slot moved: successors of its dependants may have waited for that."""
        self.dirty[after.id] = None
        if before is not None and swap.is_replaced(before) and not swap.is_replaced(after):
            self.look_at(above for above in self.desired.dependants.get(after.id, ()) if above in self.processes)

    def _moved(self, id: AgentId, before: Phase, after: Phase) -> None:
        """A phase changed: note whom that concerns."""
        if before is after or any(before in alike and after in alike for alike in _ALIKE):
            return
        if after in UP and before not in UP:
            self._up_since_s[id] = self.now_s
        self.look_at(above for above in self.desired.dependants.get(id, ()) if above.machine == self.machine)
        spec = self.desired.specs.get(id) or self.desired.gone.get(id)
        if spec is None:
            p = self.processes.get(id)
            spec = p.spec if p else None
        if before in ALIVE and after not in ALIVE and spec is not None:
            self.look_at(below for dep in spec.dependencies for below in dep.agents if below in self.processes)
        self.look_at(later for later in self.barriers.moved(id, after) if later.machine == self.machine)


def _has_begun_anew(before: AgentRow, after: AgentRow) -> bool:
    """By its budget, and not as one that a rule has replaced while it serves."""
    goes_on = after.phase is Phase.READY and after.incarnation == before.incarnation
    return after.restarts > before.restarts and not goes_on
