"""How many events a subscriber missed, by the numbers that publishers give them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: Streams (publisher, topic, life) remembered; the oldest are forgotten, and begin anew when they come back.
MAX_STREAMS: Final = 10_000


class Gaps:
    """What one subscriber has seen last of every stream.

    The first event of a publisher sets the count, whatever its number: who comes late has lost nothing. A new life of a
    publisher that is known counts from 1, so that what was lost of its beginning is seen. Two lives may overlap (a roll)."""

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self._max = max_streams
        self._last: dict[tuple[str, str, int], int] = {}
        self._newest: dict[tuple[str, str], int] = {}  # (publisher, topic) -> its newest life

    def streams(self) -> list[tuple[str, str, int, int]]:
        """(publisher, topic, life, last number) of all that are remembered, for `seen`."""
        return [(*stream, number) for stream, number in self._last.items()]

    def seen(self, streams: Iterable[tuple[str, str, int, int]]) -> None:
        """What an earlier life of the subscriber saw last: what came since then is missed."""
        for publisher, topic, life, number in streams:
            if len(self._last) < self._max:
                self._last[publisher, topic, life] = number
                self._newest[publisher, topic] = max(life, self._newest.get((publisher, topic), life))

    def missed(self, publisher: str, topic: str, life: int, number: int) -> int:
        """Note an event; how many were lost right before it. 0 for one that is known already, or older."""
        stream = publisher, topic, life
        last = self._last.get(stream)
        if last is None:
            newest = self._newest.get((publisher, topic))
            last = number - 1 if newest is None or life <= newest else 0
            if newest is None or life > newest:
                self._newest[publisher, topic] = life
            self._forget_old()
        if number <= last:
            return 0
        self._last[stream] = number
        return number - last - 1

    def knows(self, publisher: str, topic: str, life: int, number: int) -> bool:
        """Whether this event, or a later one of its stream, was noted already."""
        return number <= self._last.get((publisher, topic, life), 0)

    def lost(self, publisher: str, topic: str, life: int, first: int, last: int) -> int:
        """Note that the events `first` to `last` will not come; how many of the stream are missed by that, those right before included."""
        known = self._last.get((publisher, topic, life))
        before = self.missed(publisher, topic, life, first)
        since = first - 1 if known is None or known < first else known
        if last <= since:
            return 0
        self._last[publisher, topic, life] = last
        return before + last - since

    def _forget_old(self) -> None:
        if len(self._last) >= self._max:
            for stream in list(self._last)[: max(1, self._max // 2)]:
                del self._last[stream]
                self._newest.pop(stream[:2], None)
