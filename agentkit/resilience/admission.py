"""How much runs at once, and who waits for a turn. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Gate(Generic[T]):
    """Lets `limit` things in at once; `room` more may wait in line, first come first served."""

    __slots__ = ("inside", "limit", "line", "name", "room")

    def __init__(self, name: str, limit: int, room: int) -> None:
        self.name, self.limit, self.room = name, limit, room
        self.inside = 0
        self.line: deque[T] = deque()

    @property
    def is_full(self) -> bool:
        return self.inside >= self.limit

    @property
    def has_room(self) -> bool:
        """Whether one more may wait."""
        return len(self.line) < self.room

    def next_waiting(self) -> T | None:
        """Takes who has waited longest out of the line, if there is room inside."""
        return self.line.popleft() if self.line and not self.is_full else None

    def forget(self, thing: T) -> None:
        """`thing` does not wait any more, if it did."""
        with suppress(ValueError):
            self.line.remove(thing)
