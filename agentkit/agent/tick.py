"""The one timer of an idle agent: feeds the watchdog, measures how late the loop is, and looks whether a socket's edge was missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.agent.telling import RETRY_S, Teller
from agentkit.clock import now_s
from agentkit.observe.lag import LoopLag

#: Longest time between two ticks, in seconds; and while the agent sleeps.
TICK_S: Final = 10.0
TICK_ASLEEP_S: Final = 60.0
#: Longest pause before a node that has no room for the watchdog's food is tried again, in seconds: it may hang.
LONGEST_RETRY_S: Final = 0.64


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
            self._look()
            if self._watchdog_s:
                await self._feed()

    async def _feed(self) -> None:
        """Until there was room for it. The whole fleet comes at once to a queue of ten, and a node whose memory has gone cold takes
        100 ms to look: with four attempts in 60 ms, three beats in a row were lost, and agents that were well were ended."""
        pause_s = RETRY_S
        while not self._teller.alive():
            await asyncio.sleep(pause_s)
            self._timers.step_aside(pause_s)  # not only this time: else a fifth of a fleet woke twice for each beat
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)
            self._look()  # a node that hangs may do so for long

    def _look(self) -> None:
        self.safety_hits += self._safety_check()
