"""What an agent says about itself at one moment, and what follows from it. Pure: the endpoints and the plain verbs use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from agentkit.health.checks import CheckState, Health, Verdict

#: Phases in which an agent is on its way out and should get no new calls, whatever its checks say.
_LEAVING: Final = frozenset({"draining", "stopping", "stopped"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """An agent's state at one moment. Times in seconds; `now_s` is on the clock of the checks' `at_s`."""

    name: str
    instance: str
    machine: str
    incarnation: int
    phase: str
    started: bool  #: on_start returned and every check passed once; never false again
    ready: bool  #: takes calls
    now_s: float
    uptime_s: float
    loop_lag_s: float
    in_flight: int
    last_progress_age_s: float | None  #: since a request was finished last; None: never
    memory_mb: float
    asleep: str | None = None  #: "light" while it hibernates in memory
    verdict: Verdict = field(default_factory=Verdict)
    checks: Mapping[str, CheckState] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)  #: the author's own words, JSON values


class HealthView(Protocol):
    """What the endpoints need of an agent. Both are called on its loop and must not block."""

    def report(self) -> HealthReport: ...

    def metrics(self) -> bytes:
        """The Prometheus text exposition."""
        ...


def is_ready(report: HealthReport) -> bool:
    """Whether calls should be sent to this agent now."""
    return report.ready and report.phase not in _LEAVING and report.verdict.health is not Health.FAILING


def describe(report: HealthReport) -> dict[str, Any]:
    """The body of `/health`: also what the plain `health_check` verb answers with."""
    return {
        "status": report.verdict.health.value,
        "reasons": list(report.verdict.reasons),
        "name": report.name,
        "instance": report.instance,
        "machine": report.machine,
        "incarnation": report.incarnation,
        "phase": report.phase,
        "asleep": report.asleep,
        "started": report.started,
        "ready": is_ready(report),
        "uptime_s": round(report.uptime_s, 3),
        "loop_lag_s": round(report.loop_lag_s, 6),
        "in_flight": report.in_flight,
        "last_progress_age_s": None if report.last_progress_age_s is None else round(report.last_progress_age_s, 3),
        "memory_mb": round(report.memory_mb, 2),
        "checks": {name: _check(check, report.now_s) for name, check in report.checks.items()},
        "details": dict(report.details),
    }


def _check(check: CheckState, now_s: float) -> dict[str, Any]:
    return {
        "status": "not run" if check.at_s is None else "failed" if check.failures else "passed",
        "reason": check.reason,
        "failures": check.failures,
        "age_s": None if check.at_s is None else round(now_s - check.at_s, 3),
        "took_s": round(check.took_s, 6),
    }
