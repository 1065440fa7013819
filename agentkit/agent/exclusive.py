"""What only one process of an agent may do at a time: `run`, `@every`, `@subscribe`, leading. Calls may be served by two while one follows
the other; these wait until the gate says that the predecessor is gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from agentkit.agent.events import AgentEvents
from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.agent.leading import Leading
from agentkit.agent.periodic import repeating
from agentkit.agent.selfreport import SelfReports
from agentkit.observe.log import get_logger
from agentkit.transport.gate import Gate

log = get_logger("agentkit.exclusive")

_LOST: Final = "the node that wanted this successor is gone before it was ready"


class _End(Protocol):
    def __call__(self, reason: str = "") -> None: ...


class Exclusive:
    """Belongs to the running loop. Without a gate nobody is waited for."""

    def __init__(
        self,
        agent: Any,
        events: AgentEvents,
        reports: SelfReports,
        leading: Leading,
        *,
        is_task: bool,
        spawn: Callable[[str, Callable[[], Awaitable[None]]], None],
        end: _End,
        alone: Callable[[], None],
        gate: Gate | None,
        timers: TimerThrottle | None = None,
    ) -> None:
        """`spawn` starts a task of the agent's, `end` ends the agent; `alone` is called when the gate opens."""
        self._agent = agent
        self._events = events
        self._reports = reports
        self._leading = leading
        self._is_task = is_task
        self._spawn = spawn
        self._end = end
        self._alone = alone
        self._gate = gate
        self._timers = timers
        self.last_s: dict[str, float] = {}  #: when each `@every` method ran last, or is taken to have; monotonic
        self._takes_events = False
        self._is_ready = False

    @property
    def is_beside(self) -> bool:
        """Whether there is, or may be, a predecessor."""
        return self._gate is not None

    def watch_gate(self) -> None:
        """Called by the task that runs `on_start` next."""
        self._leading.starting()
        if self._gate is not None:
            self._gate.watch(self._opened, self._lost)

    async def before_ready(self) -> None:
        """An agent that is READY does not miss events, unless its predecessor still takes them."""
        if self._gate is None:
            await self._take_events()

    def begin(self) -> None:
        """The agent is ready: begin everything, now or when the gate opens."""
        self._is_ready = True
        if self._gate is not None:
            return
        if not self._takes_events:
            self._spawn("events", self._take_events)
        self._leading.open()
        for name, repeat in repeating(self._agent, self._reports.every_failed, self._timers, self.last_s):
            self._spawn(name, repeat)
        run = getattr(self._agent, "run", None)
        if run is not None:
            self._spawn("run", lambda: self._guard_run(run))

    def close(self) -> None:
        """Nothing is begun any more; what runs ends with the agent's tasks."""
        self._leading.no_more()
        if self._gate is not None:
            self._gate.close()

    def _opened(self) -> None:
        self._gate = None
        self._alone()
        if self._is_ready:
            self.begin()

    def _lost(self) -> None:
        """The node is gone, so nobody opens the gate any more (transport.gate says why this is right)."""
        if self._gate is None:
            return
        if self._is_ready:
            self._gate.await_predecessor(self._opened)
        else:
            log.warning("agent.not_wanted", why=_LOST)
            self._end()

    async def _take_events(self) -> None:
        self._takes_events = True
        await self._events.start()

    async def _guard_run(self, run: Callable[[], Awaitable[None]]) -> None:
        try:
            await run()
        except (Exception, SystemExit) as exc:
            log.error("agent.run_failed", exc_info=exc)
            self._reports.life_failed("run", exc)
            self._end(f"run raised {type(exc).__name__}: {exc}")
        else:
            if self._is_task:
                self._end()
