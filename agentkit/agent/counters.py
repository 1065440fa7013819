"""How much an agent has served, told to its node: within a second, once however much it was, and not while nothing happens."""

from __future__ import annotations

import asyncio
from typing import Final

from agentkit.agent.telling import Teller
from agentkit.observe.metrics import AgentMetrics

#: Counters are told at most so often, in seconds.
COUNTERS_S: Final = 1.0


class Counters:
    """Belongs to the running loop."""

    def __init__(self, book: AgentMetrics, teller: Teller) -> None:
        self._book = book
        self._teller = teller
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def note(self) -> None:
        """A request was counted."""
        if self._timer is None:
            self._timer = self._loop.call_later(COUNTERS_S, self._tell)

    def close(self) -> None:
        """What was counted since the last telling is not told any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        self._timer = None
        self._teller.counters(self._book.requests, self._book.errors)
