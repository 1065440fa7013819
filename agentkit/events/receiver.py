"""The subscribing side without sockets: takes frames, counts what was lost, hands each event to those who want it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from agentkit.clock import now_s
from agentkit.events.delivery import Delivery, decode, readable_topic, topic_in
from agentkit.events.gaps import Gaps
from agentkit.events.topics import Pattern
from agentkit.observe.log import get_logger
from agentkit.wire import values

log = get_logger("agentkit.events")

#: Topics whose listeners are remembered, so that patterns are not tried for each event.
_MAX_KNOWN: Final = 10_000
#: Garbage is logged at most so often, in seconds.
_LOG_EVERY_S: Final = 1.0

#: Takes an event; whether there was room for it.
Sink = Callable[[Delivery], bool]


class Receiver:
    """One subscriber: `take` gets every frame that its `prefixes` let through. Belongs to one thread."""

    def __init__(self, sinks: Sequence[tuple[Pattern, Sink]]) -> None:
        self.received = 0
        self.lost = 0  #: missed on the way, by their numbers, or thrown away because a sink had no room
        self.bad_frames = 0
        self.on_counted: Callable[[], None] = lambda: None  #: something was received
        self._sinks = tuple(sinks)
        self.gaps = Gaps()
        self._known: dict[bytes, tuple[str, tuple[Sink, ...]] | None] = {}
        self._logged_s = 0.0

    @property
    def prefixes(self) -> list[bytes]:
        """What to subscribe a socket to."""
        return sorted({pattern.prefix for pattern, _ in self._sinks})

    def take(self, frame: bytes) -> None:
        """One frame, as it came from the network."""
        raw = topic_in(frame)
        known = self._known.get(raw, 0)
        if known == 0:
            known = self._learn(raw)
        if known is None:
            if not raw or readable_topic(raw) is None:
                self.garbage("no topic")
            return
        topic, sinks = known  # type: ignore[misc]
        try:
            delivery = decode(topic, frame)
        except values.Undecodable as exc:
            self.garbage(str(exc))
            return
        self.received += 1
        self.on_counted()
        missed = self.gaps.missed(delivery.publisher, topic, delivery.life, delivery.number)
        if missed:
            self.lost += missed
            delivery = delivery._replace(lost=missed)
        for sink in sinks:
            if not sink(delivery):
                self.lost += 1

    def garbage(self, why: str) -> None:
        """Something arrived that is no event: counted, and logged now and then."""
        self.bad_frames += 1
        if now_s() - self._logged_s > _LOG_EVERY_S:
            self._logged_s = now_s()
            log.warning("events.bad_frame", why=why[:200], bad_frames=self.bad_frames)

    def _learn(self, raw: bytes) -> tuple[str, tuple[Sink, ...]] | None:
        """Who wants this topic; None: nobody (a prefix brings more than a pattern means), or it is none."""
        topic = readable_topic(raw)
        sinks = () if topic is None else tuple(sink for pattern, sink in self._sinks if pattern.matches(topic))
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        known = self._known[raw] = (topic, sinks) if topic is not None and sinks else None
        return known
