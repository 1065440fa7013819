"""The node's heartbeat without a pulse: whatever changed, one look per turn of the event loop, then one timer for what is due.

Nothing here runs unless something happened: `soon` is called by whoever gave the reconciler a stimulus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from agentkit.clock import SYSTEM_CLOCK, Clock
from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from startup.node.table import ClusterTable
from startup.plan.actions import Action
from startup.plan.phase import COMING_UP, SETTLED, Phase
from startup.plan.process import Process
from startup.plan.reconcile import Change, Reconciler
from startup.plan.rollout import Failure
from startup.plan.rows import Place, row_of

log = get_logger("node.turns")

#: Phases that are worth a line in the node's log; those in between take milliseconds and are in the stamps.
_LOGGED: Final = SETTLED | {Phase.BACKOFF, Phase.STOPPING}
#: Nobody acts on these, and most are over in a moment: their rows are told together, or with the next that matters.
_PASSING: Final = COMING_UP | {Phase.PENDING, Phase.WAITING}
#: How long a row that nobody acts on may wait, in seconds: short for the eye, long for a start (a third of all rows).
PASSING_S: Final = 0.03
#: The loop's timers have a resolution of 1 ms and may come early; looking again at once until it is time took 50 turns.
_TIMER_SLACK_S: Final = 0.002


class Performer(Protocol):
    """Who does what was decided (executor.Executor)."""

    def perform(self, action: Action) -> None: ...


class Turns:
    """Drives one Reconciler on the running loop."""

    def __init__(
        self,
        core: Reconciler,
        table: ClusterTable,
        *,
        on_finished: Callable[[], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.core = core
        self.place = Place()
        self.performer: Performer | None = None
        #: Told the own slots that are not what they were, and those that are gone from the fleet.
        self.on_change: Callable[[tuple[Process, ...], tuple[Process, ...]], None] = lambda *_: None
        self.on_failure: Callable[[Failure], None] = lambda _: None  #: an own agent halted the rollout of this revision
        self.count = 0
        self._table = table
        self._on_finished = on_finished
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._is_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._version = 0
        self._untold: dict[AgentId, Process] = {}
        self._tell_timer: asyncio.TimerHandle | None = None

    def now_s(self) -> float:
        return self._clock.now_s()

    def soon(self) -> None:
        """Look at the end of this turn of the loop; many calls are one look."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn)

    def on(self, id: AgentId, change: Change, *, incarnation: Incarnation | None = None) -> None:
        """`Reconciler.on`, now; what comes of it is looked at soon."""
        self.core.on(id, change, self.now_s(), incarnation=incarnation)
        self.soon()

    def close(self) -> None:
        self._is_due = True  # no further turn
        self._tell()
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self._is_due = False
        self.count += 1
        step = self.core.step(self.now_s())
        for action in step.actions:
            assert self.performer is not None
            try:
                self.performer.perform(action)
            except Exception:
                # A step's actions are handed out once: one that trips us up must not take the others with it
                log.exception("node.action_failed", action=repr(action))
        changed = tuple(self.core.processes[id] for id in step.changed if id in self.core.processes)
        self._untold.update((p.id, p) for p in (*changed, *step.removed))
        if any(p.phase not in _PASSING or self._table.get(p.id) is None for p in self._untold.values()):
            self._tell()
        elif self._untold and self._tell_timer is None:
            self._tell_timer = self._loop.call_later(PASSING_S, self._tell)
        self._table.forget(p.id for p in step.removed)
        self._sleep_until(step.wake_at_s)
        if step.changed or step.removed:
            self.on_change(changed, step.removed)
        if step.failure is not None:
            self.on_failure(step.failure)
        if step.finished:
            self._on_finished()

    def _tell(self) -> None:
        """Tell those of which somebody would see a difference."""
        if self._tell_timer is not None:
            self._tell_timer.cancel()
            self._tell_timer = None
        told = []
        for p in self._untold.values():
            known = self._table.get(p.id)
            row = row_of(p, self.place, known.version if known else 0)
            if row != known:
                self._version += 1
                told.append(replace(row, version=self._version))
                if row.phase in _LOGGED and (known is None or known.phase is not row.phase):
                    log.info("agent.phase", agent=str(row.id), phase=row.phase.value, pid=row.pid, reason=row.reason)
        self._untold.clear()
        if told:
            self._table.update(told)

    def _sleep_until(self, at_s: float | None) -> None:
        if self._timer is not None:
            if at_s == self._timer_at_s:
                return
            self._timer.cancel()
            self._timer = None
        if at_s is not None:
            self._timer_at_s = at_s
            self._timer = self._loop.call_later(max(0.0, at_s - self.now_s()) + _TIMER_SLACK_S, self._timer_due)

    def _timer_due(self) -> None:
        self._timer = None
        self.soon()
