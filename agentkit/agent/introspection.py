"""What one running agent shows to those who look: health, metrics, and the answer to a plain client's `health`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentkit.agent import gauges
from agentkit.agent.callmetrics import observe_calls
from agentkit.clock import now_s
from agentkit.health import http
from agentkit.health.http import HealthReport
from agentkit.observe.process import pss_mb
from agentkit.observe.trace import BAD_TRACEPARENTS

if TYPE_CHECKING:
    from agentkit.runtime import AgentRuntime


class Introspection:
    """Reads its runtime whenever somebody asks (health.http.HealthView)."""

    def __init__(self, runtime: AgentRuntime) -> None:
        self._runtime = runtime
        self._began_s = now_s()

    def report(self) -> HealthReport:
        """For the health port and `status`: phase, verdict, checks, load and memory as they are now."""
        runtime = self._runtime
        id, now, last_s = runtime.settings.id, now_s(), runtime._dispatcher.last_progress_s
        board = runtime._checks.board
        return HealthReport(
            name=id.name,
            instance=id.instance,
            machine=id.machine,
            incarnation=runtime.settings.incarnation,
            phase=runtime.phase,
            started=runtime._was_ready,
            ready=runtime.running or runtime._is_succeeded or runtime.deep_sleep.is_asleep,
            now_s=now,
            uptime_s=now - self._began_s,
            loop_lag_s=runtime._tick.lag.worst_s(now),
            in_flight=runtime._dispatcher.in_flight,
            last_progress_age_s=now - last_s if last_s is not None else None,
            memory_mb=pss_mb(),
            asleep=runtime.hibernation.asleep,
            verdict=board.verdict,
            checks=board.checks,
        )

    def metrics(self) -> bytes:
        """For Prometheus, in its text format."""
        return self._runtime.metrics_book.render()

    def plain_health(self) -> dict[str, Any]:
        """The same for clients that know nothing of AK1, with `status: success` as they expect it."""
        report = http.describe(self.report())
        health = report["status"]
        return {**report, "status": "success", "health": health, "healthy": health != "failing"}

    def observe(self) -> None:
        """Have everything counted; once, when all parts are there."""
        runtime = self._runtime
        book = runtime.metrics_book
        gauges.show(
            book, runtime._dispatcher, runtime._tick.lag, lambda: runtime._inbox, lambda: runtime._tick.safety_hits
        )
        gauges.show_sleep(book, runtime.hibernation)
        runtime.reports.show(book)
        if runtime._keeper is not None:
            runtime._keeper.show(book)
        observe_calls(book, runtime.caller, runtime.blocking_caller)
        book.counter(*BAD_TRACEPARENTS, lambda: runtime.tracer.bad)
        for name, (help, read) in runtime.events.counters().items():
            book.counter(name, help, read)
