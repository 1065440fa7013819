"""The one timer of an idle agent: feeds the watchdog, measures how late the loop is, and looks whether a socket's edge was missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.agent.telling import RETRY_S, Teller
from agentkit.clock import now_s
from agentkit.observe.lag import LoopLag

#: Longest time between two ticks, in seconds; and while the agent sleeps.
TICK_S: Final = 10.0
TICK_ASLEEP_S: Final = 60.0


class Tick:
    """Of one runtime."""

    def __init__(
        self, watchdog_s: float, teller: Teller, timers: TimerThrottle, safety_check: Callable[[], int]
    ) -> None:
        """`watchdog_s`: how often its starter wants to hear of it at least; 0: never. `safety_check`: takes what missed edges left
        lying, and says how much that was."""
        self.lag = LoopLag()
        self.safety_hits = 0
        self._watchdog_s = watchdog_s
        self._teller = teller
        self._timers = timers
        self._safety_check = safety_check

    async def forever(self) -> None:
        """From READY on."""
        period_s = min(TICK_S, self._watchdog_s / 3) if self._watchdog_s else TICK_S
        # two fifths of the limit, not half: one that finds the node's queue full must not be the last before it is over
        asleep_s = self._watchdog_s * 0.4 or TICK_ASLEEP_S
        while True:
            await self._timers.until_aligned(period_s, asleep_s=asleep_s, due=self.lag.due)
            self.lag.ran(now_s())
            if self._watchdog_s and not self._teller.alive():
                self._timers.step_aside(RETRY_S)  # not only this time: else a fifth of a fleet woke twice for each beat
            self.safety_hits += self._safety_check()
