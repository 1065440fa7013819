"""Sleep of an agent's own timers: at their usual pace while it is awake, slowed while it is not, anew when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agentkit.clock import now_s

#: What recurs by itself comes so many times less often while the agent sleeps...
SLOWED: Final = 10
#: ...but no less often than this, in seconds.
SLOWEST_S: Final = 60.0
#: Who steps aside again and again begins anew before it would be so late, in seconds: 50 places, each for tens of agents.
LATEST_S: Final = 1.0


def slowed_s(interval_s: float) -> float:
    """The interval of an agent that sleeps."""
    return max(interval_s, min(interval_s * SLOWED, SLOWEST_S))


class TimerThrottle:
    """Of one agent; belongs to its loop."""

    def __init__(self) -> None:
        self.is_slow = False
        self.late_s = 0.0  #: so long after its moment comes what is aligned
        self._waiting: set[asyncio.Future[None]] = set()

    def change(self, *, is_slow: bool) -> None:
        """Whoever waits works out anew how long."""
        self.is_slow = is_slow
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def interval_s(self, interval_s: float) -> float:
        """As long as it is now."""
        return slowed_s(interval_s) if self.is_slow else interval_s

    def step_aside(self, by_s: float) -> None:
        """The moment that was due is too crowded: from the next one on, what is aligned comes `by_s` later."""
        self.late_s = (self.late_s + by_s) % LATEST_S

    async def until(self, began_s: float, interval_s: float) -> None:
        """Until one interval has passed since `began_s`."""
        while (left_s := began_s + self.interval_s(interval_s) - now_s()) > 0:
            await self._wait(left_s)

    async def until_aligned(
        self, interval_s: float, *, asleep_s: float | None = None, due: Callable[[float], None] = lambda _: None
    ) -> None:
        """Until the machine's clock shows the next multiple of the interval, so that what can coincide does (a little later for who
        stepped aside). `asleep_s`: the
        interval while the agent sleeps (default: slowed as usual). `due` is told when it will be over."""
        while True:
            period_s = interval_s if not self.is_slow else slowed_s(interval_s) if asleep_s is None else asleep_s
            now = now_s()
            left_s = period_s - (now - self.late_s) % period_s
            # The loop's clock has a resolution of 1 ms and may have called early: the multiple that is due is not waited for again
            left_s = left_s if left_s > 0.002 else left_s + period_s
            due(now + left_s)
            if not await self._wait(left_s):
                return

    async def _wait(self, seconds: float) -> bool:
        """Whether it was cut short because the pace has changed."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, self._fire, future)
        self._waiting.add(future)
        is_slow = self.is_slow
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.discard(future)
        return is_slow is not self.is_slow

    @staticmethod
    def _fire(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)


async def aligned_sleep(period_s: float) -> None:
    """Until the machine's clock shows the next multiple of `period_s`, asleep or awake."""
    await TimerThrottle().until_aligned(period_s)
