"""Desired state against observed state, without I/O: what a node has to do now, and when to look again.

Stimuli (`desire`, `on`, `see_rows`, `see_unreachable`, `external_answered`, `restart`, ...) only note what changed;
`step` decides. A slot is looked at again only when something that it depends on changed, so a step costs what changed,
not the size of the fleet (a whole start of 1,000 agents: tests/startup/plan/test_reconcile_scale.py).

The rules:
- An agent starts the moment its own dependencies allow it and its phase's barrier is open (blockers.py). First start,
  restart, wake: all the same.
- An agent that shall go is told to only when every dependant that shall go too is no longer alive, on all machines.
  Dependants that stay are not waited for; they turn degraded.
- A changed agent (its digest differs from that of its process) is replaced by a successor beside it, where that can be (swap.py),
  else stopped, then started; a removed one is stopped. Pids of unchanged agents stay.
- A successor is forked when none that its agent requires is being replaced.
- An unreachable machine's agents can't be waited for and fulfil nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final, TypeAlias

from agentkit.names import AgentId, Incarnation
from startup.plan import process as proc
from startup.plan import swap
from startup.plan.actions import Action, CloseListeners, Fork, ProbeExternal
from startup.plan.blockers import Seen, View, blockers, trouble
from startup.plan.desired import Desired
from startup.plan.externals import Externals
from startup.plan.fencing import Fencing
from startup.plan.phase import ALIVE, COMING_UP, UP, Phase
from startup.plan.process import Leaving, Process
from startup.plan.revision import Revision
from startup.plan.row import AgentRow
from startup.plan.timers import Timers
from startup.spec.fleet import AgentSpec

#: What may happen to a process: a function of process.py with its facts bound.
Change: TypeAlias = Callable[[Process], "Process | tuple[Process, list[Action]]"]

_IDLE: Final = frozenset({Phase.PENDING, Phase.STOPPED})
#: Phases among which nobody else needs to be told of a move.
_ALIKE: Final = (COMING_UP, frozenset({Phase.PENDING, Phase.WAITING}))


@dataclass(frozen=True, slots=True)
class Step:
    """What one look came to."""

    actions: list[Action] = field(default_factory=list)
    changed: frozenset[AgentId] = frozenset()  #: own slots whose row is no longer what it was
    removed: tuple[Process, ...] = ()  #: slots that the fleet no longer has, as they were left
    wake_at_s: float | None = None
    finished: bool = False  #: the cluster goes down and nothing of this machine is left


@dataclass(frozen=True, slots=True)
class _Unseen:
    phase: Phase
    because: str = ""
    reason: str = ""


_NOT_YET: Final = _Unseen(Phase.PENDING)
_AWAY: Final = _Unseen(Phase.UNREACHABLE)


class Reconciler:
    """The mind of one node. Deterministic: the same stimuli with the same times give the same steps."""

    def __init__(self, machine: str, random: Random) -> None:
        self.machine = machine
        self.desired = Desired(None)
        self.processes: dict[AgentId, Process] = {}
        self._random = random
        self._remote: dict[AgentId, AgentRow] = {}
        self._unreachable: frozenset[str] = frozenset()
        self._leaving = False
        self._externals = Externals()
        self.fencing = Fencing()
        self._missing: list[set[AgentId]] = []  #: per phase: the agents that its gate still lacks
        self._up_since_s: dict[AgentId, float] = {}
        self._view = View(self.desired, self.see, self._external_is_up)
        self._now_s = 0.0
        self._timers = Timers()
        self._dirty: dict[AgentId, None] = {}  #: ordered, so that steps are the same in every run
        self._changed: set[AgentId] = set()
        self._removed: list[Process] = []
        self._actions: list[Action] = []

    # -- what is known

    def see(self, id: AgentId) -> Seen:
        """Any agent of the cluster, as this node knows it."""
        if id.machine == self.machine:
            return self.processes.get(id, _NOT_YET)
        if id.machine in self._unreachable:
            return _AWAY
        return self._remote.get(id, _NOT_YET)

    def _is_away(self, id: AgentId) -> bool:
        return id.machine in self._unreachable or id not in self._remote

    @property
    def is_leaving(self) -> bool:
        return self._leaving

    def alive(self) -> tuple[Process, ...]:
        return tuple(p for p in self.processes.values() if p.phase in ALIVE)

    # -- stimuli

    def desire(self, revision: Revision, now_s: float) -> None:
        """A new revision; everything is looked at again."""
        self._now_s = now_s
        self.desired = Desired(revision, self.desired)
        self._view = View(self.desired, self.see, self._external_is_up)
        self._missing = [{id for id in gate if self.see(id).phase not in UP} for gate in self.desired.gates]
        own = (spec.id for spec in self.desired.specs.values() if spec.machine == self.machine)
        self._dirty.update(dict.fromkeys(own))
        self._dirty.update(dict.fromkeys(self.processes))
        for p in [p for p in self.processes.values() if p.refused or p.roll_error]:
            self._put(p, replace(p, refused="", roll_error=""))  # another command, another try

    def look_again(self, now_s: float) -> None:
        """What this machine may run is not what it was (`fencing`)."""
        self._now_s = now_s
        self._dirty.update(dict.fromkeys(self.processes))

    def leave(self) -> None:
        """This machine's agents shall stop although the cluster stays (`node stop`)."""
        self._leaving = True
        self._dirty.update(dict.fromkeys(self.processes))

    def on(self, id: AgentId, change: Change, now_s: float, *, incarnation: Incarnation | None = None) -> None:
        """Something happened to a process of a slot; ignored when it is about an unknown slot, or an incarnation that is neither of
        its two."""
        self._now_s = now_s
        p = self.processes.get(id)
        if p is None:
            return
        if incarnation is None or p.incarnation == incarnation:
            self._put(p, change(p))
        elif p.swap is not None and p.swap.beside.incarnation == incarnation:
            self._put(p, swap.changed_beside(p, change(p.swap.beside)))

    def fed(self, id: AgentId, incarnation: Incarnation, now_s: float) -> bool:
        """WATCHDOG=1: the most frequent message there is, and nothing that anybody is shown. Whether a step is needed."""
        p = self.processes.get(id)
        if p is None or p.incarnation != incarnation:
            return False
        after = self.processes[id] = proc.fed(p, now_s)
        if after.deadline_s is None or p.deadline_s is not None:
            return False
        self._timers.at(after.deadline_s, id)
        return True

    def adopt(self, p: Process, *, pid: int, incarnation: Incarnation, phase: Phase, now_s: float) -> None:
        """A process that an earlier node had started; `p` holds what is remembered of it."""
        self._now_s = now_s
        self._put(None, proc.adopted(p, pid=pid, incarnation=incarnation, phase=phase, now_s=now_s))

    def adopt_beside(self, beside: Process, role: swap.Role, now_s: float) -> None:
        """Another process of a slot that was just adopted."""
        p = self.processes[beside.id]
        self._put(p, swap.adopted(p, beside, role, now_s))

    def replace(self, id: AgentId, now_s: float) -> None:
        """A slot that was just adopted, and that an earlier node was about to replace."""
        self._now_s = now_s
        p = self.processes.get(id)
        if p is not None and p.phase is Phase.READY and p.swap is None:
            self._put(p, swap.begun(p, p.spec, now_s))

    def remember(self, p: Process) -> None:
        """A slot without a process, as an earlier node left it: its restart budget goes on counting."""
        self._put(None, p)

    def see_rows(self, rows: Iterable[AgentRow], now_s: float) -> None:
        """Rows of agents on other machines."""
        self._now_s = now_s
        self._dirty.update(dict.fromkeys(self.fencing.moves))
        for row in rows:
            before = self.see(row.id).phase
            self._remote[row.id] = row
            self._moved(row.id, before, self.see(row.id).phase)

    def see_unreachable(self, machines: frozenset[str], now_s: float) -> None:
        """The machines that do not answer now (all of them)."""
        self._now_s = now_s
        self._dirty.update(dict.fromkeys(self.fencing.moves))
        ids = [id for id in {**self._remote, **self.desired.specs} if id.machine in machines ^ self._unreachable]
        before = [self.see(id).phase for id in ids]
        self._unreachable = machines
        for id, phase in zip(ids, before, strict=True):
            self._moved(id, phase, self.see(id).phase)

    def external_answered(self, name: str, now_s: float) -> None:
        self._dirty.update(dict.fromkeys(sorted(self._externals.answered(name, now_s))))

    def waits_for_external(self, name: str) -> bool:
        """Whether probing it is still worth while."""
        return self._externals.is_awaited(name, self.processes)

    def restart(self, ids: Iterable[AgentId], now_s: float, *, may_roll: bool = True) -> list[AgentId]:
        """An operator's restart: at once, without regard to dependants, budget forgiven. What serves goes on until its successor
        does, unless it may not roll. Returns those that it applies to."""
        self._now_s = now_s
        restarted = []
        for id in ids:
            p = self.processes.get(id)
            if p is None or self._why_not(id):
                continue
            forgiven = proc.forgiven(p)
            stopped = proc.stop(forgiven, now_s, Leaving.RESTART)
            self._put(p, swap.restarted(forgiven, self.desired.specs[id], now_s) if may_roll else stopped)
            restarted.append(id)
        return restarted

    def restart_by_rule(self, id: AgentId, why: str, now_s: float) -> bool:
        """`on_error: {do: restart}`; False: its budget is used up, or it is beginning anew already."""
        p = self.processes.get(id)
        if p is None or self._why_not(id):
            return False
        self._now_s = now_s
        outcome = swap.restarted_by_rule(p, self.desired.specs[id], why, now_s)
        self._put(p, outcome)
        return outcome[0] is not p

    def retry(self, now_s: float) -> list[AgentId]:
        """What failed, or is backing off, is tried again at once."""
        ids = [p.id for p in self.processes.values() if p.phase in (Phase.FAILED, Phase.BACKOFF)]
        return self.restart(ids, now_s)

    # -- decisions

    def step(self, now_s: float) -> Step:
        """Decide everything that can be decided now."""
        self._now_s = now_s
        for id in self._timers.due(now_s):
            p = self.processes.get(id)
            if p is not None:
                self._dirty[id] = None
                self._put(p, swap.due(p, now_s))
        while self._dirty:
            id = next(iter(self._dirty))
            del self._dirty[id]
            self._consider(id)
        result = Step(
            actions=self._in_order(),
            changed=frozenset(self._changed),
            removed=tuple(self._removed),
            wake_at_s=self._timers.next_s(self.processes),
            finished=self._is_finished(),
        )
        self._changed, self._removed, self._actions = set(), [], []
        return result

    def _in_order(self) -> list[Action]:
        """Forks last, the one with the longest chain of dependants first: it decides when the last one is ready."""
        forks = [action for action in self._actions if isinstance(action, Fork)]
        others: list[Action] = [action for action in self._actions if not isinstance(action, Fork)]
        if forks:
            heights = self.desired.heights
            forks.sort(key=lambda fork: -heights.get(fork.id, 0))
        return [*others, *forks]

    def _is_finished(self) -> bool:
        revision = self.desired.revision
        goes = self._leaving or (revision is not None and revision.down)
        return goes and not any(p.phase in ALIVE for p in self.processes.values())

    def _why_not(self, id: AgentId) -> str:
        why_not = self.desired.why_not(id) or self.fencing.why_not(id)
        return why_not or ("its node is stopping" if self._leaving else "")

    def _consider(self, id: AgentId) -> None:
        p, spec = self.processes.get(id), self.desired.specs.get(id)
        if p is None:
            if spec is None or spec.machine != self.machine:
                return
            p = proc.new(spec, self._now_s)
            self._put(None, p)
        why_not = self._why_not(id)
        if p.phase in ALIVE:
            self._consider_alive(p)
        elif why_not:
            self._consider_unwanted(p, why_not)
        else:
            self._consider_wanted(p, self.desired.specs[id])

    def _consider_alive(self, p: Process) -> None:
        why = self._shall_leave(p)
        if why is Leaving.NO or self._is_rolling(p, why):
            spec = self.desired.specs[p.id]
            held = trouble(spec, self._view) if p.phase is Phase.READY else ""
            after = replace(p, trouble=held) if held != p.trouble else p
            if why is Leaving.NO and spec is not p.spec:
                after = replace(after, spec=spec)
            self._put(p, after)
            self._consider_swap(self.processes[p.id], spec, why)
        elif p.leaving is not why and (p.phase is Phase.STOPPING or not self._is_needed(p.id)):
            self._put(p, proc.stop(p, self._now_s, why))
        elif swap.is_replaced(p) and why is Leaving.STOP:
            self._put(p, swap.dismissed(p, self._now_s))

    def _is_rolling(self, p: Process, why: Leaving) -> bool:
        """Whether what it shall become comes about while it serves."""
        return why is Leaving.RESTART and p.phase is Phase.READY and swap.rolls(p.spec, self.desired.specs[p.id])

    def _consider_swap(self, p: Process, spec: AgentSpec, why: Leaving) -> None:
        if p.swap is None:
            if why is Leaving.RESTART and p.refused != spec.digest():
                self._put(p, swap.begun(p, spec, self._now_s))
        elif swap.is_replaced(p) and not proc.runs(p.swap.beside, spec):
            self._put(p, swap.dismissed(p, self._now_s, again=why is Leaving.NO))
        elif p.swap.role is swap.Role.WAITS and not any(
            below in self.processes and swap.is_replaced(self.processes[below])
            for dependency in spec.dependencies
            if dependency.required
            for below in dependency.agents
        ):
            self._put(p, swap.forked_beside(p, self._now_s))

    def _shall_leave(self, p: Process) -> Leaving:
        if self._why_not(p.id):
            return Leaving.STOP
        if p.leaving is Leaving.STOP:
            return Leaving.RESTART  # wanted again before it was gone
        spec = self.desired.specs[p.id]
        return Leaving.NO if proc.runs(p, spec) else Leaving.RESTART

    def _is_needed(self, id: AgentId) -> bool:
        """Whether a dependant that shall go too is still there."""
        return any(self._is_going(above) for above in self.desired.dependants.get(id, ()))

    def _is_going(self, id: AgentId) -> bool:
        if self.see(id).phase not in ALIVE:
            return False
        p = self.processes.get(id)
        if p is None:
            return not self.desired.wants(id)
        why = self._shall_leave(p)
        return p.phase is Phase.STOPPING or (why is not Leaving.NO and not self._is_rolling(p, why))

    def _consider_unwanted(self, p: Process, why_not: str) -> None:
        spec = self.desired.specs.get(p.id)
        if spec is None:
            del self.processes[p.id]
            self._removed.append(replace(p, phase=Phase.STOPPED, reason=why_not))
            self._changed.discard(p.id)
            self._actions.append(CloseListeners(p.id))
            self._moved(p.id, p.phase, Phase.STOPPED)
        elif spec.problem and spec.enabled:
            skipped = replace(p, spec=spec, phase=Phase.SKIPPED, because=str(p.id), reason=why_not, deadline_s=None)
            if skipped != p:
                self._put(p, (skipped, [CloseListeners(p.id)]))
        elif p.phase is not Phase.STOPPED:
            stopped, actions = proc.stop(p, self._now_s, Leaving.STOP)
            self._put(p, (replace(stopped, reason=why_not), actions))
        elif p.reason != why_not:
            self._put(p, replace(p, reason=why_not))

    def _consider_wanted(self, p: Process, spec: AgentSpec) -> None:
        if spec is not p.spec:
            is_new = p.phase in (Phase.FAILED, Phase.BACKOFF, Phase.COMPLETED) and not proc.runs(p, spec)
            after = replace(p, spec=spec, digest="")
            self._put(p, proc.wanted(after, self._now_s) if is_new else after)
            p = self.processes[p.id]
        if p.phase in _IDLE or p.because == str(p.id):
            self._put(p, proc.wanted(p, self._now_s))
        elif p.phase in (Phase.WAITING, Phase.SKIPPED):
            self._consider_waiting(p)

    def _consider_waiting(self, p: Process) -> None:
        if fenced := self.fencing.blocked(p.id, self._is_away):
            self._put(p, proc.blocked(p, self._now_s, **fenced._asdict()))
            return
        gate, name = self._gate(p)
        wanted_s = p.stamps.wanted_s if p.stamps.wanted_s is not None else self._now_s
        found = blockers(p.spec, self._view, wanted_s=wanted_s, now_s=self._now_s, gate=gate, phase=name)
        if not found.waiting_for and not found.because:
            self._put(p, proc.unblocked(p, self._now_s, slowest_dependency=self._slowest(p)))
            return
        for external in found.externals:
            if self._externals.awaited_by(external, p.id):
                self._actions.append(ProbeExternal(external))
        if found.recheck_s is not None:
            self._timers.at(found.recheck_s, p.id)
        reason = found.reason or (p.reason if p.phase is Phase.WAITING else "")
        self._put(p, proc.blocked(p, self._now_s, waiting_for=found.waiting_for, because=found.because, reason=reason))

    def _gate(self, p: Process) -> tuple[Iterable[AgentId], str]:
        """Who is missing in the first phase before its own that is not up, and what that phase is called."""
        revision = self.desired.revision
        for number, missing in enumerate(self._missing[: self.desired.barrier(p.spec)]):
            if missing and revision is not None:
                return sorted(missing), "+".join(revision.fleet.phases[number])
        return (), ""

    def _slowest(self, p: Process) -> str:
        """The dependency that came up last, if it came up while this one waited for it."""
        since = [(self._up_since_s.get(id, 0.0), id) for dependency in p.spec.dependencies for id in dependency.agents]
        at_s, id = max(since, default=(0.0, None))
        return str(id) if id is not None and at_s >= (p.stamps.wanted_s or 0.0) and at_s > 0.0 else ""

    def _external_is_up(self, name: str) -> bool:
        return self._externals.is_up(name, self._now_s)

    def _put(self, before: Process | None, outcome: Process | tuple[Process, list[Action]]) -> None:
        after, actions = outcome if isinstance(outcome, tuple) else (outcome, [])
        if before is not None and after.swap is not None:
            after, actions = swap.settled(before, after, actions, self._now_s)
        self._actions.extend(actions)
        if after is before:
            return
        self.processes[after.id] = after
        self._changed.add(after.id)
        self._timers.changed(before, after)
        if after.swap is not None or (before is not None and before.swap is not None):
            self._swapped(before, after)
        if before is None or before.phase is not after.phase:
            self._dirty[after.id] = None
            self._moved(after.id, before.phase if before else Phase.PENDING, after.phase)

    def _swapped(self, before: Process | None, after: Process) -> None:
        """The two processes of a slot moved: successors of its dependants may have waited for that."""
        self._dirty[after.id] = None
        if before is not None and swap.is_replaced(before) and not swap.is_replaced(after):
            self._dirty.update(
                (above, None) for above in self.desired.dependants.get(after.id, ()) if above in self.processes
            )

    def _moved(self, id: AgentId, before: Phase, after: Phase) -> None:
        """A phase changed: note whom that concerns."""
        if before is after or any(before in alike and after in alike for alike in _ALIKE):
            return
        if after in UP and before not in UP:
            self._up_since_s[id] = self._now_s
        for above in self.desired.dependants.get(id, ()):
            if above.machine == self.machine:
                self._dirty[above] = None
        spec = self.desired.specs.get(id)
        if spec is None:
            p = self.processes.get(id)
            spec = p.spec if p else None
        if before in ALIVE and after not in ALIVE and spec is not None:
            self._dirty.update(
                (below, None) for dep in spec.dependencies for below in dep.agents if below in self.processes
            )
        for number, gate in enumerate(self.desired.gates):
            if id in gate:
                self._pass_gate(number, id, after)

    def _pass_gate(self, number: int, id: AgentId, after: Phase) -> None:
        missing = self._missing[number]
        was_open = not missing
        (missing.discard if after in UP else missing.add)(id)
        if was_open != (not missing) or after not in UP:
            self._dirty.update((later, None) for later in self.desired.behind(id) if later.machine == self.machine)
