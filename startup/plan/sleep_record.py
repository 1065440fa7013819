"""What is remembered of a slot's sleeps, and how long it has to stay awake. Pure; the transitions are sleep_transitions.py's.

Every client of ZeroMQ says its greeting at once, so a call can't be told from a port scan before there is a process that answers. So
each wake that brought no call doubles the time for which the next one has to last: who knocks every second can't keep a machine
forking, and an agent that is really called sleeps as its file says. A wake by an event is never for nothing, but it may be hasty:
where events come so often, sleep is not worth it, so that doubles the time, too, until a sleep lasts as long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: The shortest time that is doubled, and the longest that comes of it, in seconds.
AWAKE_S: Final = (0.05, 600.0)

#: Why it was woken last. A connection is the only one that may turn out to have been nothing.
CONNECTION: Final = "a connection"
TIMER: Final = "its timer"
OPERATOR: Final = "an operator"
EVENT: Final = "an event"
DEPENDANT: Final = "a dependant that woke"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Of one slot. Times are monotonic seconds, but `_wall_s`: seconds since the epoch, which outlive the machine's boot."""

    since_wall_s: float | None = None  #: asleep, or falling asleep, since
    wake_wall_s: float | None = None  #: a timer is due then
    due_s: float | None = None  #: the same, monotonic
    given_back_mb: float = 0.0  #: what its process had when it went
    wakes: int = 0
    useless: int = 0  #: of the last wakes, those in a row that no call followed
    hasty: int = 0  #: of the last wakes, those in a row that were an event's, soon after it fell asleep
    patterns: tuple[str, ...] = ()  #: events of these wake it; () while it is awake
    why: str = ""  #: it was woken
    woken_s: float | None = None  #: the wake that brought the process there is began then; None: it was not woken
    took_s: float | None = None  #: from there to ready
    veto: str = ""  #: why it did not sleep when it last could have

    def woken(self, why: str, now_s: float, slept_s: float, after_s: float) -> Sleep:
        """It is forked again, having slept for so long. `after_s`: of its file."""
        is_short = slept_s < _doubled_s(after_s, self.hasty)
        hasty = self.hasty + (why == EVENT) if is_short else 0
        return replace(
            self, since_wall_s=None, wake_wall_s=None, due_s=None, wakes=self.wakes + 1, why=why, woken_s=now_s, took_s=None,
            patterns=(), hasty=hasty,
        )  # fmt: skip

    def failed(self) -> Sleep:
        """What was forked for a wake did not come up: from here on it is a start like any other."""
        return self if self.woken_s is None else replace(self, woken_s=None)

    @property
    def is_waking(self) -> bool:
        """It was woken, and what was forked for that does not take calls yet."""
        return self.woken_s is not None and self.took_s is None

    def ready(self, now_s: float) -> Sleep:
        """The process that was forked for a wake takes calls."""
        if self.woken_s is None or self.took_s is not None:
            return self
        return replace(self, took_s=now_s - self.woken_s)

    def judged(self, calls: int) -> Sleep:
        """It wants to sleep again, after so many calls: whether it was any use to wake it."""
        if calls or self.why != CONNECTION or self.woken_s is None:
            return replace(self, useless=0)
        return replace(self, useless=self.useless + 1)

    def awake_for_s(self, after_s: float, calls: int) -> float:
        """How long it has to have been ready before it may sleep again; 0: that is its own business."""
        times = max(self.judged(calls).useless, self.hasty)
        return _doubled_s(after_s, times) if times else 0.0

    @property
    def why_awake(self) -> str:
        """What `awake_for_s` is for, in words."""
        if self.useless >= self.hasty:
            return f"it was woken {self.useless} times in a row by connections that brought no call"
        return f"it was woken {self.hasty} times in a row by events soon after it fell asleep"


def _doubled_s(after_s: float, times: int) -> float:
    return min(max(after_s, AWAKE_S[0]) * 2.0 ** min(times, 30), AWAKE_S[1])
