"""The tasks of a running agent that nobody waits for: each has a name, and all end with the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from agentkit.clock import now_s
from agentkit.observe.log import get_logger

log = get_logger("agentkit.runtime")


class Tasks:
    """Belongs to the running loop."""

    def __init__(self, owner: str) -> None:
        """`owner` begins their names."""
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[asyncio.Task[None], float] = {}

    @property
    def since(self) -> Mapping[asyncio.Task[None], float]:
        """When each began, on the machine's clock."""
        return self._tasks

    def spawn(self, name: str, function: Callable[[], Awaitable[None]]) -> None:
        """Begin one."""

        async def owned() -> None:
            await function()

        task = self._loop.create_task(owned(), name=f"{self._owner}:{name}")
        self._tasks[task] = now_s()
        task.add_done_callback(self._tasks.pop)

    async def cancel(self, limit_s: float) -> None:
        """End all, and wait for so long; one that takes no notice is left behind, and named."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        done, left = await asyncio.wait(tuple(self._tasks), timeout=limit_s)
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                log.error("agent.task_failed", task=task.get_name(), exc_info=task.exception())
        for task in left:
            log.error("agent.task_ignores_cancellation", task=task.get_name(), waited_s=round(limit_s, 1))
