"""The events of one agent: what it publishes, and its `@subscribe` methods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from heapq import nlargest
from operator import itemgetter
from typing import Any, Final

from agentkit.agent.subscriptions import Subscription, subscriptions_of
from agentkit.clock import wall_s
from agentkit.errors import DeadlineExceeded
from agentkit.events.publisher import Publisher
from agentkit.events.receiver import Receiver
from agentkit.events.registry import checked
from agentkit.events.route import RelayRoute, Route
from agentkit.observe.log import get_logger

log = get_logger("agentkit.events")

#: How long a start waits for its subscriptions to be in force, in seconds. Then it goes on: they will be when the node is back.
IN_FORCE_WITHIN_S: Final = 2.0
#: How long a thread waits until the loop has taken its event, in seconds.
TAKEN_WITHIN_S: Final = 5.0
#: The node is told at most so often what was published and received, in seconds.
TOLD_EVERY_S: Final = 1.0
#: Of so many topics, the busiest: a notification holds 32 KiB.
MAX_TOLD: Final = 100


class AgentEvents:
    """`publish` for the author; `start`, `finish` and `close` for the runtime."""

    def __init__(
        self,
        agent: object,
        name: str,
        life: int,
        route: Route,
        *,
        on_failed: Callable[[str, Exception], bool],
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """`life`: the agent's incarnation, 0 outside of a fleet. `on_failed`: see Subscription; `tell` gets the summary
        at most once a second when it has changed. ConfigError: a `@subscribe` method can't take events."""
        life = life or int(wall_s() * 1000)  # by hand: whoever starts later has the higher number
        self._route = route
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._publisher = Publisher(name, life, route.post)
        self._subscriptions: list[Subscription] = subscriptions_of(agent, on_failed)
        self._receiver: Receiver | None = None
        self._seen: tuple[tuple[str, str, int, int], ...] = ()
        self._fetch: Callable[..., Awaitable[Any]] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def topics(self) -> tuple[str, ...]:
        """What it subscribes to."""
        return tuple(dict.fromkeys(one.pattern.text for one in self._subscriptions))

    def streams(self) -> list[tuple[str, str, int, int]]:
        """What it has seen last (events.gaps)."""
        return self._receiver.gaps.streams() if self._receiver is not None else []

    def seen(
        self, streams: tuple[tuple[str, str, int, int], ...], fetch: Callable[..., Awaitable[Any]] | None = None
    ) -> None:
        """Before `start`: what an earlier life has seen. What came since then is had by `fetch` (events.handover), or counted as lost."""
        self._seen, self._fetch = streams, fetch

    async def start(self) -> None:
        """Subscribe; on return events arrive, at least those of this machine."""
        if not self._subscriptions:
            return
        self._receiver = Receiver([(one.pattern, one.offer) for one in self._subscriptions])
        self._receiver.on_counted = self._counted
        self._receiver.gaps.seen(self._seen)
        if not await self._listen(self._receiver):
            log.warning("events.not_in_force", waited_s=IN_FORCE_WITHIN_S, hint="the node is away or slow")

    async def _listen(self, receiver: Receiver) -> bool:
        if self._fetch is None or not isinstance(self._route, RelayRoute):
            return await self._route.listen(receiver, IN_FORCE_WITHIN_S)
        from agentkit.events.handover import catch_up  # few are ever woken with something kept for them

        return await catch_up(self._route, receiver, self._fetch, IN_FORCE_WITHIN_S)

    async def settled(self) -> bool:
        """Whether, within IN_FORCE_WITHIN_S, all that was published before this call has arrived."""
        return isinstance(self._route, RelayRoute) and await self._route.settled(IN_FORCE_WITHIN_S)

    def stop_listening(self) -> None:
        """Nothing is received any more: another has what comes from here on."""
        self._route.stop_listening()

    async def publish(self, topic: str, event: object) -> None:
        """See BaseAgent.publish."""
        await self._publisher.publish(topic, event)
        self._counted()

    def publish_from_thread(self, topic: str, event: object) -> None:
        """The same from a thread; returns when the loop has taken it, so that threads are no faster than it can send."""

        async def send() -> None:
            await self._publisher.send(topic, ready)
            self._counted()

        ready = checked(topic, event)
        sent = asyncio.run_coroutine_threadsafe(send(), self._loop)
        try:
            sent.result(TAKEN_WITHIN_S)
        except TimeoutError as exc:
            sent.cancel()
            raise DeadlineExceeded(
                f"{topic}: the event loop is blocked, it was not published", retry_safe=True
            ) from exc

    async def reconnected(self) -> None:
        """The node is there (again)."""
        await self._route.reconnected()

    def hold(self, wake: Callable[[str], Awaitable[None]] | None) -> None:
        """While the agent sleeps, events wait for `wake` before they are handled; None: it is awake."""
        for one in self._subscriptions:
            one.wake = wake

    @property
    def active_s(self) -> float:
        """When an event was handled last; 0: never."""
        return max((one.active_s for one in self._subscriptions), default=0.0)

    @property
    def handling(self) -> int:
        """Runs of `@subscribe` methods at this moment."""
        return sum(one.running for one in self._subscriptions)

    def safety_check(self) -> int:
        """Take what an eaten edge may have hidden; how many events that were."""
        return self._route.safety_check()

    async def finish(self, limit_s: float) -> None:
        """No more events arrive; those that did are handled, for so long."""
        self._route.stop_listening()
        if self._subscriptions:
            await asyncio.gather(*(one.finish(limit_s) for one in self._subscriptions))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._route.close()

    def _counted(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(TOLD_EVERY_S, self._tell_now)

    def _tell_now(self) -> None:
        self._timer = None
        self._tell(self.summary())

    # -- for metrics and operators ------------------------------------------------------------------------------------

    def counters(self) -> dict[str, tuple[str, Callable[[], int]]]:
        """Metric -> (help, its number now)."""
        publisher = self._publisher

        def of_receiver(name: str) -> Callable[[], int]:
            return lambda: getattr(self._receiver, name) if self._receiver is not None else 0

        return {
            "agent_events_published_total": ("Events published", lambda: publisher.published),
            "agent_events_dropped_total": ("Of those, found no room towards the relay", lambda: publisher.dropped),
            "agent_events_received_total": ("Events that subscriptions meant", of_receiver("received")),
            "agent_events_lost_total": ("Events missed on the way, or for want of room", of_receiver("lost")),
            "agent_events_bad_frames_total": ("Frames that were no event", of_receiver("bad_frames")),
            "agent_events_failed_total": (
                "Events whose method raised, or that did not fit it",
                lambda: sum(one.failed for one in self._subscriptions),
            ),
        }

    def summary(self) -> dict[str, Any]:
        """For `agentkit events`: what was published so far, by topic, and what was received."""
        receiver = self._receiver
        return {
            "published": dict(nlargest(MAX_TOLD, self._publisher.by_topic.items(), key=itemgetter(1))),
            "dropped": self._publisher.dropped,
            "patterns": sorted({one.pattern.text for one in self._subscriptions}),
            "received": receiver.received if receiver else 0,
            "lost": receiver.lost if receiver else 0,
            "failed": sum(one.failed for one in self._subscriptions),
        }
