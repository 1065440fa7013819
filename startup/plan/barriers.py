"""The barriers between a fleet's phases: which agents each of them still lacks. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agentkit.names import AgentId
from startup.plan.desired import Desired
from startup.plan.phase import UP, Phase
from startup.spec.fleet import AgentSpec

_NONE: Final[tuple[list[AgentId], str]] = ([], "")


class Barriers:
    """Of one revision. Whoever starts asks `before`; whoever moves is told to `passed`."""

    def __init__(self, desired: Desired, phase_of: Callable[[AgentId], Phase]) -> None:
        self._desired = desired
        #: per phase: the agents that its gate still lacks
        self._missing = [{id for id in gate if phase_of(id) not in UP} for gate in desired.gates]

    def before(self, spec: AgentSpec) -> tuple[list[AgentId], str]:
        """Who is missing in the first phase before that of `spec` that is not up, and what that phase is called."""
        revision = self._desired.revision
        for number, missing in enumerate(self._missing[: self._desired.barrier(spec)]):
            if missing and revision is not None:
                return sorted(missing), "+".join(revision.fleet.phases[number])
        return _NONE

    def moved(self, id: AgentId, after: Phase) -> tuple[AgentId, ...]:
        """An agent is in another phase now; returns those who have to be looked at because of a barrier."""
        concerned: tuple[AgentId, ...] = ()
        for missing, gate in zip(self._missing, self._desired.gates, strict=True):
            if id not in gate:
                continue
            was_open = not missing
            (missing.discard if after in UP else missing.add)(id)
            if was_open != (not missing) or after not in UP:
                concerned = self._desired.behind(id)
        return concerned
