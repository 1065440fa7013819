"""Threads that want something of the event loop, and wait for it no longer than they may."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from agentkit.errors import DeadlineExceeded


class Threads:
    """Of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, left_s: Callable[[], float | None]) -> None:
        """`left_s`: how long the thread that asks may wait; None: for ever."""
        self._loop, self._left_s = loop, left_s
        self._tasks: set[asyncio.Task[None]] = set()

    def result_of(
        self, wanted: Coroutine[Any, Any, Any], what: str, *, unwanted: Callable[[], None] = lambda: None
    ) -> Any:
        """What `wanted` returns, for the thread that this is, in its context. It runs to its end: should the thread have given up
        by then (DeadlineExceeded), `unwanted` is called on the loop. Exactly one of the two gets the result."""
        answer: Future[Any] = Future()

        async def run() -> None:
            try:
                value = await wanted
            except BaseException as exc:
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(exc)
                if not isinstance(exc, Exception):
                    raise
            else:
                if answer.set_running_or_notify_cancel():
                    answer.set_result(value)
                else:
                    unwanted()

        def begin() -> None:
            task = self._loop.create_task(run(), name=f"resources:get {what}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)
        try:
            return answer.result(self._left_s())
        except TimeoutError:
            if answer.cancel():
                raise DeadlineExceeded(f"resource {what}: not loaded in time") from None
            return answer.result()  # it came in this moment, or is a TimeoutError itself

    def tell(self, what: Callable[[], None]) -> None:
        """Have `what` called on the loop, soon."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whatever this was about
            self._loop.call_soon_threadsafe(what)
