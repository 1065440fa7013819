"""States for tests: in this process, gone with it."""

from __future__ import annotations

from agentkit.errors import StateFenced
from agentkit.names import Incarnation
from agentkit.state.store import PLACES, Found, Snapshot


class MemoryStore:
    """May be given to one agent after another: the next life finds what the last one saved."""

    kind = "memory"
    where = "memory"
    remedy = "use another MemoryStore"

    def __init__(self) -> None:
        self._places: list[Snapshot | None] = [None] * PLACES
        self._holder = 0

    @property
    def newest(self) -> Snapshot | None:
        """The last that was saved."""
        return next(iter(self.load().snapshots), None)

    def claim(self, incarnation: Incarnation) -> None:
        if self._holder > incarnation:
            raise StateFenced(self.where, incarnation, self._holder)
        self._holder = incarnation

    def load(self) -> Found:
        found = [snapshot for snapshot in self._places if snapshot is not None]
        return Found(sorted(found, key=lambda it: -it.number))

    def save(self, snapshot: Snapshot) -> None:
        if self._holder != snapshot.incarnation:
            raise StateFenced(self.where, snapshot.incarnation, self._holder)
        self._places[snapshot.place] = snapshot

    def close(self) -> None:
        return
