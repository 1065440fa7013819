"""The one way to limit time. A Deadline enters at a public call's `timeout=`, travels down, and over the wire as a budget.

`Deadline.scope()` ends a wait on paths that are not hot; `DeadlineQueue` ends many calls for the price of one timer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from agentkit.clock import now_s
from agentkit.errors import ConfigError, DeadlineExceeded
from agentkit.wire.envelope import MAX_BUDGET_MS

#: What a call gets when neither its caller nor its method says anything, in seconds.
DEFAULT_TIMEOUT_S: Final = 5.0

#: How late a queued deadline may be noticed, in seconds: the price of one timer for all calls.
RESOLUTION_S: Final = 0.02


def usable_seconds(timeout: float) -> float:
    """`timeout`, or the longest that a budget can say; ConfigError for what is no positive number."""
    if not isinstance(timeout, int | float) or math.isnan(timeout) or timeout < 0:
        raise ConfigError(
            at="timeout", got=timeout, want="seconds, 0 or more", fix="leave it out for the method's default"
        )
    return min(timeout, MAX_BUDGET_MS / 1000)


class Deadline:
    """A point on the monotonic clock after which nobody waits any more."""

    __slots__ = ("at_s",)

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """`seconds` from now; ConfigError for what is no positive number. A deadline is mandatory: None is refused."""
        return cls(now_s() + usable_seconds(seconds))

    def left_s(self) -> float:
        """Seconds left, 0 when there are none."""
        return max(0.0, self.at_s - now_s())

    def left_ms(self) -> int:
        """The budget for the wire, in whole milliseconds."""
        return int(self.left_s() * 1000)

    def has_passed(self) -> bool:
        return now_s() >= self.at_s

    @asynccontextmanager
    async def scope(self, what: str) -> AsyncIterator[None]:
        """Ends the block by DeadlineExceeded(`what`) when time is up; must be entered in a task of the running loop."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + self.left_s()):
                yield
        except TimeoutError as exc:
            if isinstance(exc, DeadlineExceeded):
                raise
            raise DeadlineExceeded(f"{what}: time is up") from exc

    def __repr__(self) -> str:
        return f"Deadline({self.left_s():.3f} s left)"


class DeadlineQueue:
    """Calls `on_passed(key)` for each key whose time has come. One loop timer however many keys; none is set while it is empty.

    Most keys are removed long before their time, and the timer is set for the earliest that there was: when it fires, which is as
    seldom as a timeout is long, all are looked at. Adding and removing cost 0.2 us together; a set of keys for each tick of
    20 ms took 0.45, a loop timer per call 1.3."""

    __slots__ = ("_at_s", "_loop", "_on_passed", "_timer", "_wakes_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_passed: Callable[[int], None]) -> None:
        self._loop = loop
        self._on_passed = on_passed
        self._at_s: dict[int, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = math.inf

    def add(self, key: int, at_s: float) -> None:
        """Watch `key`."""
        self._at_s[key] = at_s
        if at_s < self._wakes_s:
            self._arm(at_s)

    def remove(self, key: int) -> None:
        """Forget `key`; harmless when it has been called already."""
        self._at_s.pop(key, None)

    def close(self) -> None:
        """Forget everything."""
        self._at_s.clear()
        self._disarm()

    def _arm(self, at_s: float) -> None:
        """For `at_s` and a little later: what ends soon after it is ended with it."""
        self._disarm()
        self._wakes_s = at_s
        self._timer = self._loop.call_later(max(0.0, at_s + RESOLUTION_S / 2 - now_s()), self._fire)

    def _disarm(self) -> None:
        self._wakes_s = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._disarm()
        # The loop's clock has a resolution of 1 ms and may call early: what is due within it is due.
        now = now_s() + 0.002
        passed = sorted((at_s, key) for key, at_s in self._at_s.items() if at_s <= now)
        try:
            for _, key in passed:
                if self._at_s.pop(key, None) is not None:  # another one's end may have been this one's
                    self._on_passed(key)
        finally:
            if self._at_s:
                self._arm(min(self._at_s.values()))
