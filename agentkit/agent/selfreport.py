"""What an agent reports by itself: handlers, checks and `@every` methods that raise, a life that fails, breakers that open."""

from __future__ import annotations

from agentkit.errorbus import ErrorBus
from agentkit.observe import reports
from agentkit.observe.metrics import AgentMetrics


class SelfReports:
    """Thread-safe, and nothing here raises."""

    def __init__(self, bus: ErrorBus, *, retries: int) -> None:
        """`retries`: failures in a row that make a failed check an error."""
        self._bus = bus
        self._retries = retries

    def handler_failed(self, method: str, exc: BaseException) -> bool:
        """Whether it deserves a line in the log: a storm of them gets few."""
        return self._failed("error", method, exc, method=method)

    def every_failed(self, method: str, exc: BaseException) -> bool:
        """As `handler_failed`, of an `@every` method."""
        return self._failed("error", f"@every {method}", exc, method=method)

    def subscriber_failed(self, method: str, exc: BaseException) -> bool:
        """As `handler_failed`, of a `@subscribe` method."""
        return self._failed("error", f"@subscribe {method}", exc, method=method)

    def life_failed(self, what: str, exc: BaseException) -> None:
        """`on_start`, `run` or `on_stop` raised."""
        self._failed("critical", what, exc)

    def sleep_failed(self, what: str, exc: BaseException) -> None:
        """`on_hibernate`, `on_wake` or a step into deep sleep raised."""
        self._failed("error", what, exc)

    def resource_failed(self, name: str, exc: BaseException) -> None:
        """A loader or unloader raised."""
        self._failed("error", f"resource {name}", exc, resource=name)

    def check_failed(self, name: str, why: str, failures: int, exc: BaseException | None) -> None:
        """The first failure of a row is a warning, the one that makes the agent unhealthy an error; those between say nothing new."""
        if failures in (1, self._retries):
            severity = "error" if failures >= self._retries else "warning"
            message = f"health check {name} failed: {why}"
            self._bus.report(severity, message, {"check": name, "failures": failures}, exc=exc, kind=f"check {name}")

    def state_trouble(self, kind: str, message: str, *, severity: str, exc: BaseException | None = None) -> None:
        """The state is not saved, or not what it was."""
        self._bus.report(severity, message, {}, exc=exc, kind=f"state {kind}")

    def breaker_opened(self, peer: str, why: str, failures: int) -> None:
        """Calls to `peer` are refused for a while, after so many failures in a row."""
        self._bus.report(
            "warning", f"breaker of {peer} opened: {why}", {"peer": peer, "failures": failures}, kind="breaker"
        )

    def show(self, book: AgentMetrics) -> None:
        """The bus's own counters."""
        bus = self._bus
        book.counters("agent_errors_reported_total", "Errors reported", "severity", lambda: bus.reported)
        book.counter(
            "agent_errors_suppressed_total", "Errors counted without a line in the log", lambda: bus.suppressed
        )
        book.counter("agent_errors_lost_total", "Errors that the node refused", lambda: bus.lost)
        book.gauge("agent_errors_waiting", "Errors that the node has not stored yet", lambda: bus.waiting)

    def _failed(self, severity: str, what: str, exc: BaseException, **context: str) -> bool:
        told = self._bus.report(
            severity, f"{what} raised {type(exc).__qualname__}: {reports.text_of(exc)}", context, exc=exc
        )
        return told is not None
