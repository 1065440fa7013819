"""When to look at which slot again. Pure: a heap that forgets what no longer means anything."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.process import Process


class Timers:
    """Entries are never taken out when a deadline moves: a start that went well leaves its limit behind, to be passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, AgentId]] = []

    def at(self, at_s: float, id: AgentId) -> None:
        heapq.heappush(self._heap, (at_s, id))

    def changed(self, before: Process | None, after: Process) -> None:
        """Note the deadlines that `before` had not."""
        known = () if before is None else deadlines_s(before)
        for at_s in deadlines_s(after):
            if at_s not in known:
                self.at(at_s, after.id)

    def due(self, now_s: float) -> Iterator[AgentId]:
        while self._heap and self._heap[0][0] <= now_s:
            yield heapq.heappop(self._heap)[1]

    def next_s(self, processes: Mapping[AgentId, Process]) -> float | None:
        """When the first is due that still means something."""
        while self._heap:
            at_s, id = self._heap[0]
            p = processes.get(id)
            if p is not None and (at_s in deadlines_s(p) or p.phase is Phase.WAITING):
                return at_s
            heapq.heappop(self._heap)
        return None


def deadlines_s(p: Process) -> tuple[float, ...]:
    """When `due` has something to say of it, or of the process beside it."""
    own = () if p.deadline_s is None else (p.deadline_s,)
    beside_s = p.swap.beside.deadline_s if p.swap is not None else None
    return own if beside_s is None else (*own, beside_s)
