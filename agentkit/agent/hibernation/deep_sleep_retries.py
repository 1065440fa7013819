"""From light sleep to deep: tried as often as it takes, broken off when the agent is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from agentkit.observe.log import get_logger

log = get_logger("agentkit.hibernation")

#: First and longest pause before a sleep that could not be made deep is tried again, in seconds.
AGAIN_S: Final = (1.0, 600.0)

#: Makes a light sleep deep. True: the process is on its way out. False: it could not.
Deepen = Callable[[], Awaitable[bool]]


class DeepSleepRetries:
    """One light sleep's way into deep sleep. Belongs to the running loop."""

    def __init__(
        self, deepen: Deepen, *, on_failed: Callable[[BaseException], None], on_refused: Callable[[], None]
    ) -> None:
        """`on_refused`: `deepen` could not; it is tried again."""
        self._deepen, self._on_failed, self._on_refused = deepen, on_failed, on_refused
        loop = asyncio.get_running_loop()
        self._tried: asyncio.Future[bool] = loop.create_future()
        self._task = loop.create_task(self._try_until_it_is(), name="hibernation:deepen")

    async def first(self) -> bool:
        """Whether the first attempt succeeds, or has."""
        either: set[asyncio.Future[Any]] = {self._task, self._tried}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._tried.done() and self._tried.result()

    @property
    def has_failed(self) -> bool:
        """Whether the first attempt did."""
        return self._tried.done() and not self._tried.result()

    async def end(self) -> bool:
        """Break it off; whether that is too late, as the process is on its way out."""
        while (
            not self._task.done()
        ):  # once should do; but whoever waits may forget that it was cancelled (asyncio.wait_for)
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)
        return not self._task.cancelled() and self._task.exception() is None

    async def _try_until_it_is(self) -> None:
        pause_s, longest_s = AGAIN_S
        while not await self._try():
            self._on_refused()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, longest_s)

    async def _try(self) -> bool:
        is_deep = False
        try:
            is_deep = await self._deepen()
        except Exception as exc:
            log.error("hibernation.deepen_failed", exc_info=exc)
            self._on_failed(exc)
        if not self._tried.done():
            self._tried.set_result(is_deep)
        return is_deep
