"""What a subscriber's node keeps for it while it has no process: the events that it subscribed to, in order, within a bound. Pure.

From the first that finds no room on, nothing is kept: of each stream the first and last number that were dropped are remembered, so that
the subscriber can count them as lost, as if its own queue had been full."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from agentkit.events.delivery import Delivery
from agentkit.events.topics import Pattern

#: Kept for one subscriber, in events and in bytes of frames; it is woken by the first of them.
MAX_EVENTS: Final = 4_096
MAX_BYTES: Final = 4 * 1024 * 1024
#: Streams of which it is remembered what was dropped.
MAX_DROPPED: Final = 10_000
#: Handed over at once, in bytes of frames: one more event may fit in.
PAGE_BYTES: Final = 256 * 1024
#: Subscriptions of one subscriber.
MAX_PATTERNS: Final = 256


class Mailbox:
    """Of one sleeping subscriber."""

    def __init__(self, patterns: Iterable[str], *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        """ConfigError: one of them is no pattern."""
        self.patterns = tuple(Pattern(text, at="patterns") for text in patterns)
        self.frames: list[bytes] = []
        self.dropped: dict[
            tuple[str, str, int], tuple[int, int]
        ] = {}  #: (publisher, topic, life) -> first and last number
        self._max_events, self._max_bytes = max_events, max_bytes
        self._bytes = 0

    @property
    def prefixes(self) -> list[bytes]:
        """What to subscribe a socket to."""
        return sorted({pattern.prefix for pattern in self.patterns})

    @property
    def is_empty(self) -> bool:
        """Nothing has come."""
        return not self.frames

    def wants(self, topic: str) -> bool:
        return any(pattern.matches(topic) for pattern in self.patterns)

    def put(self, event: Delivery, frame: bytes) -> None:
        """An event that it `wants`, and the frame that it came in."""
        has_room = len(self.frames) < self._max_events and self._bytes + len(frame) <= self._max_bytes
        if has_room and not self.dropped:
            self.frames.append(frame)
            self._bytes += len(frame)
            return
        stream = event.publisher, event.topic, event.life
        first, _ = self.dropped.get(stream, (event.number, 0))
        if stream in self.dropped or len(self.dropped) < MAX_DROPPED:
            self.dropped[stream] = first, event.number

    def page(self, offset: int) -> dict[str, Any]:
        """What the subscriber gets who has `offset` events already: frames, where to go on (None: that was all), and what was dropped."""
        end, size = offset, 0
        while end < len(self.frames) and size < PAGE_BYTES:
            size += len(self.frames[end])
            end += 1
        is_last = end >= len(self.frames)
        return {
            "frames": self.frames[offset:end],
            "next": None if is_last else end,
            "dropped": [[*stream, *numbers] for stream, numbers in self.dropped.items()] if is_last else [],
        }
