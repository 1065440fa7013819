"""Desired state against observed state, without I/O: what a node has to do now, and when to look again.

Stimuli (`desire`, `on`, `see_rows`, `see_unreachable`, `external_answered`, `restart`, ...) only note what changed;
`step` decides (decisions.py). A slot is looked at again only when something that it depends on changed (slots.py), so a step costs
what changed, not the size of the fleet (a whole start of 1,000 agents: tests/startup/plan/test_reconcile_scale.py).

The rules:
- An agent starts the moment its own dependencies allow it and its phase's barrier is open (blockers.py). First start,
  restart, wake: all the same.
- An agent that shall go is told to only when every dependant that shall go too is no longer alive, on all machines.
  Dependants that stay are not waited for; they turn degraded.
- A changed agent (its digest differs from that of its process) is replaced by a successor beside it, where that can be (swap.py),
  else stopped, then started; a removed one is stopped. Pids of unchanged agents stay.
- Where only the config changed, and the process takes configs, it is told instead (reconfigure.py).
- A successor is forked when none that its agent requires is being replaced.
- An unreachable machine's agents can't be waited for and fulfil nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeAlias

from agentkit.names import AgentId, Incarnation
from startup.plan import ending, sleep_transitions, swap, transitions
from startup.plan.actions import Action, Fork
from startup.plan.blockers import Seen
from startup.plan.decisions import Decisions
from startup.plan.desired import Desired
from startup.plan.fencing import Fencing
from startup.plan.phase import ALIVE, Phase
from startup.plan.process import Leaving, Process
from startup.plan.revision import Revision
from startup.plan.rollout import Failure
from startup.plan.row import AgentRow
from startup.plan.sleep_record import DEPENDANT, TIMER
from startup.plan.sleep_transitions import Refusal, Wish
from startup.plan.slots import Slots

#: What may happen to a process: a function of transitions.py or ending.py with its facts bound.
Change: TypeAlias = Callable[[Process], "Process | tuple[Process, list[Action]]"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one look came to."""

    actions: list[Action] = field(default_factory=list)
    changed: frozenset[AgentId] = frozenset()  #: own slots whose row is no longer what it was
    removed: tuple[Process, ...] = ()  #: slots that the fleet no longer has, as they were left
    wake_at_s: float | None = None
    failure: Failure | None = None  #: why the rollout of this revision has just been halted
    finished: bool = False  #: the cluster goes down and nothing of this machine is left


class Reconciler:
    """The mind of one node. Deterministic: the same stimuli with the same times give the same steps."""

    def __init__(self, machine: str, random: Random) -> None:
        self.machine = machine
        self._random = random
        self._slots = Slots(machine)
        self._decisions = Decisions(self._slots)

    # -- what is known

    @property
    def desired(self) -> Desired:
        return self._slots.desired

    @property
    def processes(self) -> dict[AgentId, Process]:
        """This machine's slots."""
        return self._slots.processes

    @property
    def fencing(self) -> Fencing:
        return self._decisions.fencing

    @fencing.setter
    def fencing(self, fencing: Fencing) -> None:
        self._decisions.fencing = fencing

    def see(self, id: AgentId) -> Seen:
        """Any agent of the cluster, as this node knows it."""
        return self._slots.see(id)

    @property
    def is_leaving(self) -> bool:
        return self._decisions.is_leaving

    def alive(self) -> tuple[Process, ...]:
        return tuple(p for p in self.processes.values() if p.phase in ALIVE)

    # -- stimuli

    def desire(self, revision: Revision, now_s: float) -> None:
        """A new revision; everything is looked at again."""
        self._slots.now_s = now_s
        before = self._slots.desired
        self._slots.desire(revision)
        self._decisions.revised(before)
        for p in [p for p in self.processes.values() if p.refused or p.roll_error or p.config_refused]:
            self._slots.put(p, replace(p, refused="", roll_error="", config_refused=""))  # another command, another try

    def see_revision(self, machine: str, number: int, now_s: float) -> None:
        """The revision that another machine has."""
        self._slots.now_s = now_s
        self._decisions.rolling.see_revision(machine, number)

    def look_again(self, now_s: float) -> None:
        """What this machine may run is not what it was (`fencing`)."""
        self._slots.now_s = now_s
        self._slots.look_at(self.processes)

    def leave(self) -> None:
        """This machine's agents shall stop although the cluster stays (`node stop`)."""
        self._decisions.is_leaving = True
        self._slots.look_at(self.processes)

    def on(self, id: AgentId, change: Change, now_s: float, *, incarnation: Incarnation | None = None) -> None:
        """Something happened to a process of a slot; ignored when it is about an unknown slot, or an incarnation that is neither of
        its two."""
        self._slots.now_s = now_s
        p = self.processes.get(id)
        if p is None:
            return
        if incarnation is None or p.incarnation == incarnation:
            self._slots.put(p, change(p))
        elif p.swap is not None and p.swap.beside.incarnation == incarnation:
            self._slots.put(p, swap.changed_beside(p, change(p.swap.beside)))

    def fed(self, id: AgentId, incarnation: Incarnation, now_s: float) -> bool:
        """WATCHDOG=1: the most frequent message there is, and nothing that anybody is shown. Whether a step is needed."""
        p = self.processes.get(id)
        if p is None or p.incarnation != incarnation:
            return False
        after = self.processes[id] = transitions.fed(p, now_s)
        if after.deadline_s is None or p.deadline_s is not None:
            return False
        self._slots.timers.at(after.deadline_s, id)
        return True

    def adopt(self, p: Process, *, pid: int, incarnation: Incarnation, phase: Phase, now_s: float) -> None:
        """A process that an earlier node had started; `p` holds what is remembered of it."""
        self._slots.now_s = now_s
        self._slots.put(None, transitions.adopted(p, pid=pid, incarnation=incarnation, phase=phase, now_s=now_s))

    def adopt_beside(self, beside: Process, role: swap.Role, now_s: float) -> None:
        """Another process of a slot that was just adopted."""
        p = self.processes[beside.id]
        self._slots.put(p, swap.adopted(p, beside, role, now_s))

    def replace(self, id: AgentId, now_s: float) -> None:
        """A slot that was just adopted, and that an earlier node was about to replace."""
        self._slots.now_s = now_s
        p = self.processes.get(id)
        if p is not None and p.phase is Phase.READY and p.swap is None:
            self._slots.put(p, swap.begun(p, p.spec, now_s))

    def remember(self, p: Process) -> None:
        """A slot without a process, as an earlier node left it: its restart budget goes on counting."""
        self._slots.put(None, p)

    def see_rows(self, rows: Iterable[AgentRow], now_s: float) -> None:
        """Rows of agents on other machines."""
        self._slots.now_s = now_s
        self._slots.look_at(self.fencing.moves)
        self._slots.see_rows(rows)

    def see_unreachable(self, machines: frozenset[str], now_s: float) -> None:
        """The machines that do not answer now (all of them)."""
        self._slots.now_s = now_s
        self._slots.look_at(self.fencing.moves)
        self._slots.see_unreachable(machines)

    def external_answered(self, name: str, now_s: float) -> None:
        self._slots.look_at(sorted(self._decisions.externals.answered(name, now_s)))

    def waits_for_external(self, name: str) -> bool:
        """Whether probing it is still worth while."""
        return self._decisions.externals.is_awaited(name, self.processes)

    def restart(self, ids: Iterable[AgentId], now_s: float, *, may_roll: bool = True) -> list[AgentId]:
        """An operator's restart: at once, without regard to dependants, budget forgiven. What serves goes on until its successor
        does, unless it may not roll. Returns those that it applies to."""
        self._slots.now_s = now_s
        restarted = []
        for id in ids:
            p = self.processes.get(id)
            if p is None or self._decisions.why_not(id):
                continue
            forgiven = ending.forgiven(p)
            stopped = transitions.stop(forgiven, now_s, Leaving.RESTART)
            self._slots.put(p, swap.restarted(forgiven, self.desired.specs[id], now_s) if may_roll else stopped)
            restarted.append(id)
        return restarted

    def restart_by_rule(self, id: AgentId, why: str, now_s: float) -> bool:
        """`on_error: {do: restart}`; False: its budget is used up, or it is beginning anew already."""
        p = self.processes.get(id)
        if p is None or self._decisions.why_not(id):
            return False
        self._slots.now_s = now_s
        outcome = swap.restarted_by_rule(p, self.desired.specs[id], why, now_s)
        self._slots.put(p, outcome)
        return outcome[0] is not p

    def retry(self, now_s: float) -> list[AgentId]:
        """What failed, or is backing off, is tried again at once."""
        ids = [p.id for p in self.processes.values() if p.phase in (Phase.FAILED, Phase.BACKOFF)]
        return self.restart(ids, now_s)

    def sleep(self, id: AgentId, incarnation: Incarnation, wish: Wish, now_s: float, wall_s: float) -> Refusal | None:
        """An agent wants to sleep; None: it may, and then ends with EXIT_ASLEEP, or says that it stays awake."""
        self._slots.now_s = now_s
        p = self.processes.get(id)
        if p is None or p.incarnation != incarnation:
            return Refusal("this process is not the one that its slot is known by")
        found = sleep_transitions.asks(p, wish, now_s, wall_s)
        if isinstance(found, Refusal):
            return found
        self._slots.put(p, found)
        return None

    def wake(self, id: AgentId, why: str, now_s: float) -> bool:
        """Whether it slept, and is forked as soon as what it requires is there; with what it depends on here, if its file says so."""
        self._slots.now_s = now_s
        p = self.processes.get(id)
        if p is None or p.phase is not Phase.HIBERNATED:
            return False
        self._slots.put(p, sleep_transitions.woken(p, why, now_s))
        if p.spec.hibernate.wake_dependencies:
            for dependency in p.spec.dependencies:
                for below in dependency.agents:
                    self.wake(below, DEPENDANT, now_s)
        return True

    def lie_down(self, p: Process, now_s: float, wall_s: float) -> None:
        """A slot that slept when an earlier node ended."""
        self._slots.now_s = now_s
        self._slots.put(None, sleep_transitions.found_again(p, now_s, wall_s))

    # -- decisions

    def step(self, now_s: float) -> Step:
        """Decide everything that can be decided now."""
        slots = self._slots
        slots.now_s = now_s
        for id in slots.timers.due(now_s):
            p = self.processes.get(id)
            if p is not None:
                slots.dirty[id] = None
                if p.phase is Phase.HIBERNATED and p.deadline_s is not None and p.deadline_s <= now_s:
                    self.wake(id, TIMER, now_s)
                else:
                    slots.put(p, swap.due(p, now_s))
        rolling = self._decisions.rolling
        rolling.advance()
        while slots.dirty or slots.begun_anew:
            for id in tuple(slots.begun_anew):
                del slots.begun_anew[id]
                self._decisions.take_along(id)
            if not slots.dirty:
                break
            id = next(iter(slots.dirty))
            del slots.dirty[id]
            self._decisions.consider(id)
            if not slots.dirty:
                rolling.advance()
        wakes = [at_s for at_s in (slots.timers.next_s(self.processes), rolling.wake_at_s()) if at_s is not None]
        result = Step(
            actions=self._in_order(slots.actions),
            changed=frozenset(slots.changed),
            removed=tuple(slots.removed),
            wake_at_s=min(wakes, default=None),
            failure=rolling.take_failure(),
            finished=self._decisions.is_finished(),
        )
        slots.changed, slots.removed, slots.actions = set(), [], []
        return result

    def _in_order(self, actions: list[Action]) -> list[Action]:
        """Forks last, the one with the longest chain of dependants first: it decides when the last one is ready."""
        forks = [action for action in actions if isinstance(action, Fork)]
        others: list[Action] = [action for action in actions if not isinstance(action, Fork)]
        if forks:
            heights = self.desired.heights
            forks.sort(key=lambda fork: -heights.get(fork.id, 0))
        return [*others, *forks]
