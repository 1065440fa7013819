"""What is known of the externals that agents wait for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.process import Process

#: An external that answered counts as up this long, so that one probe serves all who wait for it, seconds.
EXTERNAL_FRESH_S: Final = 10.0


class Externals:
    def __init__(self) -> None:
        self._up_s: dict[str, float] = {}
        self._waiters: dict[str, set[AgentId]] = {}

    def is_up(self, name: str, now_s: float) -> bool:
        at_s = self._up_s.get(name)
        return at_s is not None and now_s - at_s <= EXTERNAL_FRESH_S

    def answered(self, name: str, now_s: float) -> set[AgentId]:
        """It is up; returns those who waited for it."""
        self._up_s[name] = now_s
        return self._waiters.pop(name, set())

    def awaited_by(self, name: str, id: AgentId) -> bool:
        """Whether `id` is the first that waits for it: it has to be probed from now on."""
        waiters = self._waiters.setdefault(name, set())
        waiters.add(id)
        return len(waiters) == 1

    def is_awaited(self, name: str, processes: Mapping[AgentId, Process]) -> bool:
        """Whether probing it is still worth while."""
        waiters = self._waiters.get(name, set())
        if any(p is not None and p.phase is Phase.WAITING for p in map(processes.get, waiters)):
            return True
        self._waiters.pop(name, None)
        return False
