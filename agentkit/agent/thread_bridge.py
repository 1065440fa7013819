"""What blocking calls in an agent's threads need of its event loop: names looked up, awaitables waited for, mistakes refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any

from agentkit.directory.base import AgentRecord, Directory
from agentkit.errors import CallError, DeadlineExceeded
from agentkit.resilience.deadline import Deadline


class BlockingOnLoop(AssertionError):
    """`self.blocking` on the event loop would block everything, the answer included: `await self.call(...)` there."""

    def __init__(self) -> None:
        super().__init__(" ".join((type(self).__doc__ or "").split()))


class ThreadBridge:
    """For every thread but the loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: Directory) -> None:
        self._loop = loop
        self._directory = directory

    def lookup(self, name: str, deadline: Deadline) -> tuple[AgentRecord, ...]:
        """The instances of `name`. DeadlineExceeded, AgentUnknown."""
        with contextlib.suppress(CallError):
            return self._directory.cached(name)  # reads one dict: as good from a thread
        found = asyncio.run_coroutine_threadsafe(self._directory.lookup(name), self._loop)
        try:
            return found.result(deadline.left_s())
        except TimeoutError as exc:
            found.cancel()
            raise DeadlineExceeded(f"looking up {name}: time is up", retry_safe=True) from exc

    def result_of(self, thing: Awaitable[Any]) -> Any:
        """What `thing` ends with, on the loop."""
        return asyncio.run_coroutine_threadsafe(_awaited(thing), self._loop).result()

    def refuse_on_loop(self) -> None:
        """BlockingOnLoop when this is the loop's thread."""
        with contextlib.suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                raise BlockingOnLoop


async def _awaited(thing: Awaitable[Any]) -> Any:
    return await thing
