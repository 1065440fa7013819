"""Waiting until nobody of an inbox's callers waits for anything any more, while it goes on reading and answering."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from agentkit.resilience.deadline import Deadline
from agentkit.transport.plain import PlainCallers

#: How long a draining inbox waits for connections that have not said HELLO yet, in seconds.
STRAGGLERS_S: Final = 0.25


class Drain:
    """Of one inbox. Belongs to the running loop."""

    def __init__(self, is_busy: Callable[[], bool], connections: Callable[[], int], plain: PlainCallers) -> None:
        """`is_busy`: somebody waits for an answer, or will say BYE and has not yet. `connections`: those that are open."""
        self._is_busy = is_busy
        self._connections = connections
        self._plain = plain
        self._loop = asyncio.get_running_loop()
        self._changed: asyncio.Future[None] | None = None

    def note(self) -> None:
        """Something has changed that may be waited for."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def finished(self, deadline: Deadline) -> bool:
        """Whether it came to that before the deadline. Plain callers are served until they pause: idle ones are not waited for, they
        would never go."""
        if await self.until(lambda: not self._is_busy(), deadline):
            # Connections that are still shaking hands: their HELLO is worth a GOAWAY, a port scanner is worth no more
            await self.until(
                lambda: self._plain.have_come or self._connections() <= 0,
                Deadline.after(min(STRAGGLERS_S, deadline.left_s())),
            )
            while (quiet_in_s := self._plain.quiet_in_s()) and not deadline.has_passed():
                await asyncio.sleep(min(quiet_in_s, deadline.left_s()))
                await self.until(lambda: not self._is_busy(), deadline)
        self._plain.is_shut = True
        return not self._is_busy()

    async def until(self, is_reached: Callable[[], bool], deadline: Deadline) -> bool:
        """Whether it comes to that before the deadline; looked at whenever something was noted."""
        while not is_reached() and not deadline.has_passed():
            self._changed = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline.left_s()):  # not wait_for: it may forget that it was cancelled
                    await self._changed
        self._changed = None
        return is_reached()
