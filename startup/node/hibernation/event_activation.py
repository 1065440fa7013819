"""Listens to events for agents that sleep deep: what they subscribed to is kept for them, and the first of it wakes them.

    sleep         the agent asks; it may go on when what it subscribes to is in force here (events.probing)
    laid          nothing is left of its process: what has come meanwhile wakes it at once
    kept_events   its next process listens itself now, and takes what was kept (events.handover)

One socket for all of them, open while there is anybody. What is kept is in memory only: a node that dies takes it along, and the agents
count it as lost by its numbers. The next node listens again to what it remembers of its sleepers (Sleep.patterns)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from agentkit.errors import AgentkitError, BadRequest, ConfigError
from agentkit.events.delivery import MAX_EVENT_BYTES
from agentkit.events.handover import event_of
from agentkit.events.mailbox import MAX_PATTERNS, Mailbox
from agentkit.events.probing import Probing
from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from agentkit.transport.pubsub import Endpoints, Subscriber
from startup.plan.phase import Phase
from startup.plan.process import Process

log = get_logger("node.hibernation")

#: The slot is over: nobody will take what was kept for it.
_OVER: Final = frozenset({Phase.STOPPED, Phase.FAILED, Phase.SKIPPED, Phase.COMPLETED})


class _Kept:
    """For one agent."""

    def __init__(self, incarnation: Incarnation, mailbox: Mailbox) -> None:
        self.incarnation = incarnation  #: of the process that went to sleep
        self.mailbox = mailbox
        self.is_closed = False  #: its next process listens itself


class EventActivation:
    """Belongs to the running loop."""

    def __init__(
        self,
        folder: Path,
        ensure: Callable[[Mapping[str, Any]], Any],
        *,
        on_event: Callable[[AgentId], None],
        within_s: float,
    ) -> None:
        """`folder`: where the relay's sockets are. `ensure`: NodeEvents.ensure. `on_event`: something has come for an agent, told until
        it was taken. `within_s`: how long a subscription may take to be in force."""
        self._within_s = within_s
        self._endpoints = Endpoints.below(folder)
        self._ensure = ensure
        self._on_event = on_event
        self._probing = Probing(self._probe)
        self._subscriber: Subscriber | None = None
        self._kept: dict[AgentId, _Kept] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, id: AgentId, incarnation: Incarnation, patterns: tuple[str, ...]) -> bool | None:
        """From now on; whether that is in force. None: meanwhile it was dropped, or begun anew. BadRequest: these are no patterns."""
        self.drop(id)
        if len(patterns) > MAX_PATTERNS:
            raise BadRequest(f"{len(patterns):,} patterns, at most {MAX_PATTERNS} are listened to")
        try:
            kept = self._kept[id] = _Kept(incarnation, Mailbox(patterns))
        except ConfigError as exc:
            raise BadRequest(str(exc)) from exc
        subscriber = self._subscriber
        if subscriber is None:
            taking = self._probing.taking(self._take)
            subscriber = self._subscriber = Subscriber(self._endpoints[1:], (), taking, max_frame_bytes=MAX_EVENT_BYTES)
        for prefix in kept.mailbox.prefixes:
            subscriber.subscribe(prefix)
        is_heard = await self._probing.heard(subscriber, self._within_s, is_everywhere=True)
        return is_heard if self._kept.get(id) is kept else None

    def laid(self, p: Process) -> None:
        """Nothing is left of its process."""
        kept = self._kept.get(p.id)
        if kept is not None:
            if not kept.mailbox.is_empty:
                self._on_event(p.id)
        elif p.sleep is not None and p.sleep.patterns:
            self._spawn(self._listen_again(p.id, p.incarnation, p.sleep.patterns))

    async def take(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Operation `kept_events {id, incarnation, offset}`: a page of what was kept (Mailbox.page) for who listens itself by now."""
        id, incarnation = AgentId.parse(said["id"]), Incarnation(int(said["incarnation"]))
        offset = max(0, int(said["offset"]))
        kept = self._kept.get(id)
        if kept is None or kept.incarnation == incarnation:
            return Mailbox(()).page(0)
        if not kept.is_closed:
            if self._subscriber is not None:  # what its relay has sent until now is on its way here
                await self._probing.heard(self._subscriber, self._within_s, is_everywhere=True)
            self._close(kept)
        return kept.mailbox.page(offset)

    def changed(self, slots: Iterable[Process], removed: Iterable[Process] = ()) -> None:
        """Some slots are not what they were: what nobody will take any more goes."""
        if not self._kept:
            return
        for p in slots:
            kept = self._kept.get(p.id)
            if kept is not None and (
                p.phase in _OVER or (p.phase is Phase.READY and p.incarnation != kept.incarnation)
            ):
                self.drop(p.id)
        for p in removed:
            self.drop(p.id)

    def drop(self, id: AgentId) -> None:
        """Nothing is kept for it any more."""
        if (kept := self._kept.pop(id, None)) is None:
            return
        self._close(kept)
        if not self._kept and self._subscriber is not None:
            self._subscriber.close()
            self._subscriber = None

    def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        for id in tuple(self._kept):
            self.drop(id)

    def _close(self, kept: _Kept) -> None:
        if not kept.is_closed:
            kept.is_closed = True
            if self._subscriber is not None:
                for prefix in kept.mailbox.prefixes:
                    self._subscriber.unsubscribe(prefix)

    def _take(self, frame: bytes) -> None:
        event = event_of(frame)
        if event is None:
            return
        for id, kept in self._kept.items():
            if not kept.is_closed and kept.mailbox.wants(event.topic):
                kept.mailbox.put(event, frame)
                self._on_event(id)

    async def _listen_again(self, id: AgentId, incarnation: Incarnation, patterns: tuple[str, ...]) -> None:
        if await self.listen(id, incarnation, patterns) is False:
            log.warning("events.not_in_force", agent=str(id), waited_s=self._within_s)

    async def _probe(self, **arguments: Any) -> None:
        try:
            self._ensure(arguments)
        except AgentkitError as error:
            log.warning("events.no_relay", why=str(error))

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name="events of sleepers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
