"""What one turn of the event loop wants to send, sent together at its end.

Sent one by one, each message finds libzmq's IO thread asleep, wakes it (a system call) and becomes a TCP segment of its own. With
256 calls in flight, sending them together took an eighth off the CPU time of a call (63 to 55 us on two busy cores)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batch(Generic[T]):
    """Belongs to the running loop. Order is kept."""

    __slots__ = ("_items", "_loop", "_send")

    def __init__(self, send: Callable[[T], None]) -> None:
        self._send = send
        self._items: list[T] = []
        self._loop = asyncio.get_running_loop()

    def __bool__(self) -> bool:
        """Whether something waits: then whatever comes must wait behind it."""
        return bool(self._items)

    def add(self, item: T) -> None:
        """To be sent when the loop has finished this turn."""
        if not self._items:
            self._loop.call_soon(self.flush)
        self._items.append(item)

    def take(self) -> list[T]:
        """What waits, not to be sent any more."""
        items, self._items = self._items, []
        return items

    def flush(self) -> None:
        """Send what waits now."""
        for item in self.take():
            self._send(item)
