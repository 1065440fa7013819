"""When Consul is asked, and what its index means. Pure: the rules that Consul documents for blocking queries, and our own for calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

#: A changing service is asked for at most so often, in seconds.
QUERY_GAP_S: Final = 0.5
#: Pause after the first failed call in seconds, doubled up to the last. Short at the end, because everything has to be
#: registered again 5 s after Consul is back.
AWAY_S: Final = (0.25, 2.0)
#: Calls of one round are so far apart, in seconds, and a whole round is spread over no more than the second.
STEP_S: Final = 0.02
ROUND_S: Final = 2.0
#: TTLs are fed when so much of them is over: 84 agents with 15 s are 8.4 calls a second, and a late round is not too late.
FEED_PART: Final = 2 / 3


@dataclass(frozen=True, slots=True)
class Told:
    """What follows from the index that came with an answer."""

    index: int  #: to ask with next; 0: ask without, and get an answer at once
    was_reset: bool  #: Consul's state is another one than before: restarted empty, restored, another datacenter


def next_index(asked: int, told: object) -> Told:
    """The rules of Consul's documentation: an index that is no positive number counts as none; one that went back means that the
    state was reset, and the next query must not wait on it."""
    try:
        index = int(str(told))
    except ValueError:
        index = 0
    if index <= 0:
        return Told(0, was_reset=asked > 0)
    if index < asked:
        return Told(0, was_reset=True)
    return Told(index, was_reset=False)


@dataclass(slots=True)
class Backoff:
    """Pauses after failures. `draw`: random numbers from 0 to 1."""

    draw: Callable[[], float]
    first_s: float = AWAY_S[0]
    last_s: float = AWAY_S[1]
    failures: int = 0

    def failed(self) -> float:
        """How long to wait now: between half and all of a pause that doubles."""
        pause_s = min(self.first_s * 2.0 ** min(self.failures, 16), self.last_s)
        self.failures += 1
        return pause_s * (0.5 + 0.5 * self.draw())

    def succeeded(self) -> None:
        self.failures = 0


def step_pause_s(calls: int) -> float:
    """The pause between two calls of a round of so many: a fleet that comes back must not knock Consul over again."""
    return min(STEP_S, ROUND_S / calls) if calls else 0.0


def feed_due_s(fed_s: float | None, ttl_s: float, now_s: float) -> float:
    """When all TTLs are fed next: in step with what else this machine does now and then, never further apart than the part."""
    if fed_s is None:
        return now_s
    period_s = ttl_s * FEED_PART
    due_s = fed_s + period_s - fed_s % period_s
    return due_s if due_s > fed_s else fed_s + period_s  # the remainder may round to the whole period
