"""What the node itself has to report of its processes: that one failed and is started again, or is given up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentkit.names import AgentId
from agentkit.observe.reports import PROCESS, ErrorGroup, Severity, template
from startup.plan.phase import Phase
from startup.plan.process import Process


class Incidents:
    """Compares each process with how it was seen last."""

    def __init__(self) -> None:
        self._last: dict[
            AgentId, tuple[float, Phase, str]
        ] = {}  #: when it failed last, its phase, what became of its last roll

    def remember(self, id: AgentId, facts: Mapping[str, Any]) -> None:
        """What an earlier node knew of it (memory.facts_of): that was reported then."""
        failures = facts.get("failures") or [0.0]
        self._last[id] = (float(failures[-1]), Phase(facts["phase"]), facts.get("roll_error", ""))

    def forget(self, id: AgentId) -> None:
        self._last.pop(id, None)

    def noticed(self, p: Process, wall_s: float) -> ErrorGroup | None:
        """A report when `p` has failed since it was seen last. `wall_s`: now, in seconds since the epoch."""
        failed_s, phase, roll_error = self._last.get(p.id, (0.0, Phase.PENDING, ""))
        latest_s = p.failures[-1] if p.failures else 0.0
        self._last[p.id] = (latest_s, p.phase, p.roll_error)
        if p.phase is Phase.FAILED and phase is not Phase.FAILED and not p.is_quarantined:
            return word_of_the_node("critical", f"given up: {p.reason}", wall_s, **_facts(p))
        if p.roll_error and p.roll_error != roll_error:
            return word_of_the_node("error", f"not replaced, it serves on: {p.roll_error}", wall_s, **_facts(p))
        if latest_s > failed_s and p.phase not in (Phase.STOPPING, Phase.READY):  # those: a rule spent of the budget
            return word_of_the_node("error", f"failed and is started again: {p.last_error}", wall_s, **_facts(p))
        return None


def word_of_the_node(severity: Severity, message: str, wall_s: float, **context: Any) -> ErrorGroup:
    """A report of the node's own about one of its processes."""
    return ErrorGroup(
        severity=severity,
        kind=PROCESS,
        where=template(message),
        message=message,
        count=1,
        first_s=wall_s,
        last_s=wall_s,
        context=context,
    )


def _facts(p: Process) -> dict[str, Any]:
    return {"last_exit": p.last_exit, "restarts": p.restarts, "streak": p.streak, "incarnation": int(p.incarnation)}
