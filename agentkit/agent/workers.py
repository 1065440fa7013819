"""Worker threads for handlers that are plain `def`, and may block."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agentkit.agent.context import Serving

Handler = Callable[..., Any]


class Workers:
    """Belongs to the running loop. The threads are there from the first call on that needs one."""

    def __init__(self, size: int) -> None:
        self.stuck = 0  #: whose call's deadline has passed
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, work: Serving, handler: Handler) -> Any:
        """A thread can't be cancelled: when the deadline passes its caller is told, and the thread keeps its place and stays counted
        until it returns."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._size, thread_name_prefix="handler")
        call = functools.partial(_without_stop_iteration, handler, work.arguments)
        future = self._loop.run_in_executor(self._pool, contextvars.copy_context().run, call)
        work.thread = future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                self.stuck += 1
                future.add_done_callback(self._on_unstuck)
            raise

    def close(self) -> None:
        """They end; the next call that needs one has new ones. One that is stuck is left behind: nothing can end it."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _on_unstuck(self, future: asyncio.Future[Any]) -> None:
        self.stuck -= 1
        if not future.cancelled():
            future.exception()  # nobody waits for it any more


def _without_stop_iteration(handler: Handler, arguments: Mapping[str, Any]) -> Any:
    """What `handler` returns. A future can't hold StopIteration: the call would never end."""
    try:
        return handler(**arguments)
    except StopIteration as exc:
        raise RuntimeError("the handler raised StopIteration") from exc
