"""How much runs at once, who waits for a turn, for how long, and in which order. No I/O, no clock.

Whoever waits longer than its caller is likely to, only keeps others waiting: so a wait has a limit. And while a line is long, the
newest goes first: the oldest have waited in vain already, and serving them first would make everybody wait as long. Time in which
the process stood still is nobody's wait: refusing for it all who are in line would end calls that have their turn a moment later."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Final, Generic, Protocol, TypeVar

#: A usual wait is at most so many times as long as the handler itself takes...
PATIENCE: Final = 2.0
#: ...but not longer than this, in seconds, unless somebody says so.
LONGEST_WAIT_S: Final = 1.0
#: A line that was empty so long ago, in seconds, is a burst and no overload: nobody in it is refused (CoDel's interval). With 50 ms
#: alone, 256 calls in flight and three busy neighbours on two cores, one agent in three refused calls that it had room for.
BURST_S: Final = 0.2
#: Who is looked at so much too late, in seconds, was not for want of CPU: several times a timer's resolution (resilience.deadline).
STANDSTILL_S: Final = 0.1
#: Weight of the last run in the average of how long one takes.
_LAST: Final = 0.1
#: What the refused are told to stay away, in ms: at least, at most, and when nothing is known yet.
_RETRY_AFTER_MS: Final = (10, 5_000, 100)


class Queued(Protocol):
    """What waits in a line."""

    queued_s: float  #: since when


T = TypeVar("T", bound=Queued)


class Gate(Generic[T]):
    """Lets `limit` things in at once, and `spare` more that are urgent; `room` of each kind may wait in line."""

    __slots__ = (
        "_adapts",
        "_awake_s",
        "_stands_s",
        "_wait_s",
        "inside",
        "limit",
        "line",
        "name",
        "room",
        "spare",
        "urgent",
        "usual_s",
    )

    def __init__(
        self, name: str, limit: int, room: int, *, wait_s: float | None = None, adapts: bool = False, spare: int = 0
    ) -> None:
        """`wait_s`: how long a thing may wait; None: for ever. `adapts`: longer where handlers take longer."""
        self.name, self.limit, self.room, self.spare = name, limit, room, spare
        self._wait_s, self._adapts = wait_s, adapts
        self._awake_s = 0.0  #: when the process went on after it had stood still
        self._stands_s = 0.0  #: when the line was empty last
        self.usual_s = -1.0  #: how long one is inside, on average; negative: not known yet
        self.inside = 0
        self.line: deque[T] = deque()
        self.urgent: deque[T] = deque()

    def is_full(self, *, urgent: bool = False) -> bool:
        return self.inside >= (self.limit + self.spare if urgent else self.limit)

    @property
    def wait_s(self) -> float | None:
        """How long one may wait now; None: as long as it likes."""
        if not self._adapts or self._wait_s is None:
            return self._wait_s
        if self.usual_s < 0:
            return None  # the first ones are still at it
        return max(self._wait_s, min(self.usual_s * PATIENCE, LONGEST_WAIT_S))

    @property
    def retry_after_ms(self) -> int:
        """When it may be worth coming again: the time that those in line need."""
        least, most, unknown = _RETRY_AFTER_MS
        if self.usual_s < 0:
            return unknown
        return round(min(max((len(self.line) + 1) * self.usual_s / self.limit * 1000, least), most))

    def join(self, thing: T, *, urgent: bool = False) -> bool:
        """`thing` waits; False when the line is full."""
        line = self.urgent if urgent else self.line
        if len(line) >= self.room:
            return False
        if not self.line and not self.urgent:
            self._stands_s = thing.queued_s
        line.append(thing)
        return True

    def next_waiting(self, now_s: float) -> T | None:
        """Takes whose turn it is out of the line, if there is room inside."""
        if self.urgent and self.inside < self.limit + self.spare:
            return self.urgent.popleft()
        line = self.line
        if not line or self.inside >= self.limit:
            return None
        wait_s = self.wait_s
        is_long = wait_s is not None and now_s - line[0].queued_s > wait_s / 2 < now_s - self._awake_s
        return line.pop() if is_long else line.popleft()

    def over_s(self, thing: T, limit_s: float, now_s: float, *, burst_s: float = BURST_S) -> float:
        """For how long `thing` has waited beyond `limit_s`; negative: it may wait for so long yet.

        Nobody is over it while the line is younger than `burst_s`. Who is found far beyond both was not looked at in time, as the
        process stood still: all waits begin anew."""
        waits_s = max(thing.queued_s, self._awake_s)
        over_s = min(now_s - waits_s - limit_s, now_s - max(self._stands_s, self._awake_s) - burst_s)
        if over_s > STANDSTILL_S + max(self.usual_s, 0.0):
            self._awake_s = now_s
            return -limit_s
        return over_s

    def ran(self, seconds: float) -> None:
        """One was inside for so long, and has left."""
        usual_s = self.usual_s
        self.usual_s = seconds if usual_s < 0 else usual_s + (seconds - usual_s) * _LAST

    def forget(self, thing: T) -> None:
        """`thing` does not wait any more, if it did."""
        for line in (self.line, self.urgent):
            with suppress(ValueError):
                line.remove(thing)
