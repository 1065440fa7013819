"""What shall become of one slot now: the rules of reconcile.py, each asked of the slot and of what is known around it. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from agentkit.names import AgentId
from startup.plan import process as proc
from startup.plan import reconfigure, sleep_transitions, swap, transitions
from startup.plan.actions import CloseListeners, ProbeExternal
from startup.plan.blockers import View, blockers, trouble
from startup.plan.desired import Desired
from startup.plan.externals import Externals
from startup.plan.fencing import Fencing
from startup.plan.phase import ALIVE, Phase
from startup.plan.process import Leaving, Process
from startup.plan.rollout import Rolling
from startup.plan.slots import Slots
from startup.plan.strategies import cause, companions
from startup.spec.fleet import AgentSpec

_IDLE: Final = frozenset({Phase.PENDING, Phase.STOPPED})


class Decisions:
    """Asks `slots`, and puts into it what it decides."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.rolling = Rolling(slots)
        self.fencing = Fencing()
        self.externals = Externals()
        self.is_leaving = False  #: this machine's agents shall stop although the cluster stays
        self._view = View(slots.desired, slots.see, self._external_is_up)

    def revised(self, before: Desired) -> None:
        """The slots have another revision now, in the place of `before`."""
        self.rolling.revised(before)
        self._view = View(self._slots.desired, self._slots.see, self._external_is_up)

    def is_finished(self) -> bool:
        """The cluster, or this machine, shall go, and nothing of it is left here."""
        revision = self._slots.desired.revision
        goes = self.is_leaving or (revision is not None and revision.down)
        return goes and not any(p.phase in ALIVE for p in self._slots.processes.values())

    def why_not(self, id: AgentId) -> str:
        """Why no process of it shall run here; "" when one shall."""
        why_not = self._slots.desired.why_not(id) or self.fencing.why_not(id)
        return why_not or ("its node is stopping" if self.is_leaving else "")

    def consider(self, id: AgentId) -> None:
        """Look at one slot, and put what becomes of it."""
        slots = self._slots
        p, spec = slots.processes.get(id), slots.desired.specs.get(id)
        if p is None:
            if spec is None or spec.machine != slots.machine:
                return
            p = proc.new(spec, slots.now_s)
            slots.put(None, p)
        why_not = self.why_not(id)
        if p.phase in ALIVE:
            self._consider_alive(p)
        elif why_not:
            self._consider_unwanted(p, why_not)
        else:
            self._consider_wanted(p, slots.desired.specs[id])

    def take_along(self, id: AgentId) -> None:
        """It failed and begins anew: so do those of this machine that its group's strategy says."""
        slots = self._slots
        for other in companions(id, slots.desired):
            p = slots.processes.get(other)
            if p is not None and not self.why_not(other):
                slots.put(p, transitions.restarted_with(p, cause(id, slots.desired), slots.now_s))

    # -- there is a process

    def _consider_alive(self, p: Process) -> None:
        slots = self._slots
        why = self._shall_leave(p)
        holds = self._holds(p.id)
        if holds and p.id not in slots.desired.specs:
            return  # it leaves last
        if why is Leaving.NO or self._is_rolling(p, why):
            spec = slots.desired.specs[p.id]
            held = trouble(spec, self._view) if p.phase is Phase.READY else ""
            after = replace(p, trouble=held) if held != p.trouble else p
            if not holds and reconfigure.is_possible(p, spec):
                slots.put(p, reconfigure.offered(after, spec))
            elif why is Leaving.NO and spec is not p.spec and not holds:
                slots.put(p, replace(after, spec=spec))
            else:
                slots.put(p, after)
            if not holds or (p.swap is not None and proc.runs(p.swap.beside, spec)):
                self._consider_swap(slots.processes[p.id], spec, why)
        elif p.leaving is not why and (p.phase is Phase.STOPPING or not self._is_needed(p.id)):
            slots.put(p, transitions.stop(p, slots.now_s, why))
        elif swap.is_replaced(p) and why is Leaving.STOP:
            slots.put(p, swap.dismissed(p, slots.now_s))

    def _is_rolling(self, p: Process, why: Leaving) -> bool:
        """Whether what it shall become comes about while it serves."""
        return why is Leaving.RESTART and p.phase is Phase.READY and swap.rolls(p.spec, self._slots.desired.specs[p.id])

    def _consider_swap(self, p: Process, spec: AgentSpec, why: Leaving) -> None:
        slots = self._slots
        if p.swap is None:
            if why is Leaving.RESTART and p.refused != spec.digest():
                slots.put(p, swap.begun(p, spec, slots.now_s))
        elif swap.is_replaced(p) and not proc.runs(p.swap.beside, spec):
            slots.put(p, swap.dismissed(p, slots.now_s, again=why is Leaving.NO))
        elif p.swap.role is swap.Role.WAITS and not any(
            below in slots.processes and swap.is_replaced(slots.processes[below])
            for dependency in spec.dependencies
            if dependency.required
            for below in dependency.agents
        ):
            slots.put(p, swap.forked_beside(p, slots.now_s))

    def _holds(self, id: AgentId) -> bool:
        """Whether it is not its turn yet in a rollout."""
        return self.rolling.holds(id) and not self.is_leaving and not self.fencing.why_not(id)

    def _shall_leave(self, p: Process) -> Leaving:
        if self._holds(p.id):
            return p.leaving
        if self.why_not(p.id):
            return Leaving.STOP
        if p.leaving is Leaving.STOP:
            return Leaving.RESTART  # wanted again before it was gone
        spec = self._slots.desired.specs[p.id]
        return Leaving.NO if proc.runs(p, spec) or reconfigure.is_possible(p, spec) else Leaving.RESTART

    def _is_needed(self, id: AgentId) -> bool:
        """Whether a dependant that shall go too is still there."""
        return any(self._is_going(above) for above in self._slots.desired.dependants.get(id, ()))

    def _is_going(self, id: AgentId) -> bool:
        if self._slots.see(id).phase not in ALIVE:
            return False
        p = self._slots.processes.get(id)
        if p is None:
            return not self._slots.desired.wants(id)
        why = self._shall_leave(p)
        return p.phase is Phase.STOPPING or (why is not Leaving.NO and not self._is_rolling(p, why))

    # -- there is none

    def _consider_unwanted(self, p: Process, why_not: str) -> None:
        slots = self._slots
        spec = slots.desired.specs.get(p.id)
        if spec is None:
            slots.drop(p, replace(p, phase=Phase.STOPPED, reason=why_not))
        elif spec.problem and spec.enabled:
            skipped = replace(p, spec=spec, phase=Phase.SKIPPED, because=str(p.id), reason=why_not, deadline_s=None)
            if skipped != p:
                slots.put(p, (skipped, [CloseListeners(p.id)]))
        elif p.phase is not Phase.STOPPED:
            stopped, actions = transitions.stop(p, slots.now_s, Leaving.STOP)
            slots.put(p, (replace(stopped, reason=why_not), actions))
        elif p.reason != why_not:
            slots.put(p, replace(p, reason=why_not))

    def _consider_wanted(self, p: Process, spec: AgentSpec) -> None:
        slots = self._slots
        if spec is not p.spec:
            is_new = p.phase in (Phase.FAILED, Phase.BACKOFF, Phase.COMPLETED) and not proc.runs(p, spec)
            after = replace(p, spec=spec, digest="")
            if p.phase is Phase.HIBERNATED:
                slots.put(p, sleep_transitions.revised(p, spec, slots.now_s))
            else:
                slots.put(p, transitions.wanted(after, slots.now_s) if is_new else after)
            p = slots.processes[p.id]
        if p.phase in _IDLE or p.because == str(p.id):
            slots.put(p, transitions.wanted(p, slots.now_s))
        elif p.phase in (Phase.WAITING, Phase.SKIPPED):
            self._consider_waiting(p)

    def _consider_waiting(self, p: Process) -> None:
        slots, now_s = self._slots, self._slots.now_s
        if fenced := self.fencing.blocked(p.id, slots.is_away):
            slots.put(p, transitions.blocked(p, now_s, **fenced._asdict()))
            return
        if (holder := slots.port_holder(p.spec)) is not None:
            slots.put(
                p, transitions.blocked(p, now_s, waiting_for=(f"{holder} to leave its port",), because="", reason="")
            )
            return
        gate, name = slots.barriers.before(p.spec)
        wanted_s = p.stamps.wanted_s if p.stamps.wanted_s is not None else now_s
        found = blockers(p.spec, self._view, wanted_s=wanted_s, now_s=now_s, gate=gate, phase=name)
        if not found.waiting_for and not found.because:
            slots.put(p, transitions.unblocked(p, now_s, slowest_dependency=slots.slowest_dependency(p)))
            return
        for external in found.externals:
            if self.externals.awaited_by(external, p.id):
                slots.actions.append(ProbeExternal(external))
        if found.recheck_s is not None:
            slots.timers.at(found.recheck_s, p.id)
        reason = found.reason or (p.reason if p.phase is Phase.WAITING else "")
        slots.put(p, transitions.blocked(p, now_s, waiting_for=found.waiting_for, because=found.because, reason=reason))

    def _external_is_up(self, name: str) -> bool:
        return self.externals.is_up(name, self._slots.now_s)
