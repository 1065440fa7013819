"""Verdicts on an agent's health, from the results of its checks. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from agentkit.errors import ConfigError


class Health(StrEnum):
    """How an agent fares. The values cross the wire and are those of the launcher's own Health."""

    OK = "ok"
    DEGRADED = "degraded"  #: works, with a reason; takes calls
    FAILING = "failing"  #: should get no calls


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPolicy:
    """How checks are run: `health_check:` of the configuration file."""

    interval_s: float = 10.0  #: from the end of one round to the beginning of the next
    timeout_s: float = 2.0  #: of one check; a check that takes longer has failed
    retries: int = 3  #: failures in a row that turn degraded into failing

    def __post_init__(self) -> None:
        for name, value in (("interval", self.interval_s), ("timeout", self.timeout_s)):
            if not 0 < value < float("inf"):
                raise ConfigError(at=f"health_check.{name}", got=value, want="a duration longer than 0")
        if self.retries < 1:
            raise ConfigError(at="health_check.retries", got=self.retries, want="an int >= 1")


@dataclass(slots=True)
class CheckState:
    """What is known of one check. Times are seconds on the clock of whoever reports."""

    passed_once: bool = False
    failures: int = 0  #: in a row, up to now
    reason: str = ""  #: of the last failure; empty after a pass
    at_s: float | None = None  #: when the last result came; None: it has not run
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The health of an agent and why it is not ok: one sentence per cause, checks before the rest."""

    health: Health = Health.OK
    reasons: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return "; ".join(self.reasons)


@dataclass(slots=True)
class HealthBoard:
    """Collects results and reasons; `verdict` is always up to date, so whoever reports on change compares it."""

    policy: CheckPolicy = field(default_factory=CheckPolicy)
    verdict: Verdict = field(default_factory=Verdict, init=False)
    _checks: dict[str, CheckState] = field(default_factory=dict, init=False)
    _notes: dict[str, tuple[Health, str]] = field(default_factory=dict, init=False)

    def declare(self, names: Iterable[str]) -> None:
        """These checks exist; none has run. A name declared twice stays one check."""
        for name in names:
            self._checks.setdefault(name, CheckState())

    @property
    def checks(self) -> Mapping[str, CheckState]:
        """By name, in the order in which they were declared."""
        return MappingProxyType(self._checks)

    @property
    def all_passed_once(self) -> bool:
        """What startup waits for; true when there are no checks."""
        return all(check.passed_once for check in self._checks.values())

    def passed(self, name: str, at_s: float, took_s: float = 0.0) -> None:
        """The check `name` passed. KeyError: it was never declared."""
        check = self._checks[name]
        check.passed_once, check.failures, check.reason = True, 0, ""
        check.at_s, check.took_s = at_s, took_s
        self._judge()

    def failed(self, name: str, reason: str, at_s: float, took_s: float = 0.0) -> None:
        """The check `name` failed. KeyError: it was never declared."""
        check = self._checks[name]
        check.failures, check.reason = check.failures + 1, reason
        check.at_s, check.took_s = at_s, took_s
        self._judge()

    def note(self, source: str, reason: str, health: Health = Health.DEGRADED) -> None:
        """Something besides checks is wrong: `note("dependency Cache", "Cache stopped by operator")`.

        Replaces what that source said before; an empty reason, or Health.OK, takes it back."""
        if reason and health is not Health.OK:
            self._notes[source] = (health, reason)
        else:
            self._notes.pop(source, None)
        self._judge()

    def _judge(self) -> None:
        """One failing cause makes it failing, else one cause makes it degraded."""
        causes = [
            (
                Health.FAILING if check.failures >= self.policy.retries else Health.DEGRADED,
                f"check {name} failed{f' {check.failures} times in a row' * (check.failures > 1)}: {check.reason}",
            )
            for name, check in self._checks.items()
            if check.failures
        ]
        causes += self._notes.values()
        healths = {health for health, _ in causes}
        worst = next((h for h in (Health.FAILING, Health.DEGRADED) if h in healths), Health.OK)
        self.verdict = Verdict(worst, tuple(reason for _, reason in causes))
