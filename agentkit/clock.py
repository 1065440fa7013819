"""The only reader of time. Everything that waits or stamps gets a Clock, so that tests can move it by hand."""

from __future__ import annotations

import time
from typing import Final, Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now_s(self) -> float:
        """Seconds on a clock that never jumps; comparable within one machine (it survives the process, not a reboot)."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch, for people and files; may jump."""
        ...


class SystemClock:
    """The machine's own clocks. CLOCK_MONOTONIC is shared by all processes of a machine, so its stamps may cross processes."""

    now_s = staticmethod(time.monotonic)
    wall_s = staticmethod(time.time)


SYSTEM_CLOCK: Final[Clock] = SystemClock()

#: The machine's clocks for code that needs no other: deadlines, measurements, stamps.
now_s: Final = time.monotonic
wall_s: Final = time.time
