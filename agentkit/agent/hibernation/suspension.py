"""What of a running agent sleeps: who waits at its door meanwhile, and what is given back. Wired for lifecycle.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agentkit.agent.blocking import BlockingCaller
from agentkit.agent.caller import Caller
from agentkit.agent.dispatch import Dispatcher
from agentkit.agent.events import AgentEvents
from agentkit.agent.hibernation.idle_policy import Signs
from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.agent.hibernation.wake_locks import WakeLocks
from agentkit.agent.resources import Resources
from agentkit.errors import CallError
from agentkit.transport.pool import SocketPool


class Suspension:
    """Belongs to the agent's loop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        events: AgentEvents,
        caller: Caller,
        blocking_caller: BlockingCaller,
        sockets: SocketPool,
        resources: Resources,
        timers: TimerThrottle,
    ) -> None:
        self.wake_locks = WakeLocks()
        self.timers = timers
        self._dispatcher, self._events = dispatcher, events
        self._caller, self._blocking, self._sockets = caller, blocking_caller, sockets
        self._resources = resources

    def signs(self, noted_s: float) -> Signs:
        """What it does now. `noted_s`: the latest activity that is not to be seen here."""
        dispatcher = self._dispatcher
        return Signs(
            active_s=max(noted_s, dispatcher.last_progress_s or 0.0, self._events.active_s),
            serving=dispatcher.in_flight,
            stuck=dispatcher.threads_stuck,
            handling=self._events.handling,
            calling=self._caller.in_flight + self._blocking.in_flight,
            leased=self._sockets.leased,
            pinned=self._resources.pinned,
            blocks=self.wake_locks.blocks,
            awake_until_s=self.wake_locks.until_s,
        )

    def hold(self, nudge: Callable[[str], None], wake: Callable[[str], Awaitable[None]]) -> None:
        """Calls and events wait from now on, until `resume`. Calls `nudge`, events `wake`."""
        self._dispatcher.hold(nudge)
        self._events.hold(wake)

    def resume(self) -> None:
        """They run."""
        self._events.hold(None)
        self._dispatcher.resume()

    def refuse(self, error: Callable[[], CallError]) -> None:
        """Calls that wait end by this; later ones wait again."""
        self._dispatcher.refuse_held(error)

    async def release(self) -> None:
        """Unload resources, close connections and forget answers that nobody needs now; all of it comes again when it is used."""
        await self._resources.release()
        self._caller.release()
        self._blocking.release()
        self._sockets.release()
        self._dispatcher.release()
