"""What Prometheus is told about an agent.

Counting happens on every request, rendering once per scrape: so the counts are plain Python lists and ints, and
prometheus_client's families are built from them only when somebody asks. `finished` costs 0.42 us against 5.4 us for a
labelled Counter and Histogram of the library. Make one AgentMetrics after the fork; its methods belong to the
event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from prometheus_client import PROCESS_COLLECTOR, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agentkit.clock import wall_s
from agentkit.errors import BY_CODE
from agentkit.observe import log, process

#: The media type of what `render` returns.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Upper bounds in seconds: a native echo takes under 1 ms, the longest service class has 60 s.
BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
#: The outcome of a request that was answered with a result; the others are wire codes.
OK: Final = "ok"
#: The method label of whatever is not a declared method: callers must not be able to grow the label set.
UNKNOWN: Final = "unknown"

Kind = Literal["gauge", "counter"]
_BOUNDS: Final = (*map(str, BUCKETS_S), "+Inf")
#: The slowest calls that are remembered: so many, of the last so many seconds, and only such as took longer than this, in seconds.
SLOWEST: Final = 16
SLOW_FOR_S: Final = 600.0
SLOW_S: Final = 0.005


class SlowCall(NamedTuple):
    """One call that took long."""

    seconds: float
    method: str
    outcome: str
    at_s: float  #: when it ended, seconds since the epoch
    trace_id: str  #: "": it was not traced


class _Method:
    """Counts of one method. `buckets` are not cumulative: one increment per request, summed at the scrape."""

    __slots__ = ("buckets", "outcomes", "seconds")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {OK: 0}
        self.buckets = [0] * len(_BOUNDS)
        self.seconds = 0.0


class AgentMetrics(Collector):
    """Everything that one agent tells Prometheus, labelled with its name.

    `methods` are those it declares, verbs of plain REQ callers included. `requests` and `errors` are totals over all
    methods; an error is any outcome but "ok", the caller's mistakes included."""

    def __init__(self, agent: str, methods: Iterable[str]) -> None:
        self.agent = agent
        self.requests = 0
        self.errors = 0
        self._methods = {method: _Method() for method in methods}
        self._unknown = _Method()
        self._waits = _Method()
        self._reads: list[tuple[Kind, str, str, Callable[[], float]]] = []
        self._labelled: list[tuple[Kind, str, str, str, Callable[[], Mapping[str, float]]]] = []
        self.slowest: list[SlowCall] = []  #: of late
        self._slow_s = SLOW_S  # what is quicker need not be looked at
        self.counter("agent_log_lines_dropped_total", "Log lines that could not be written", log.dropped_lines)

    def finished(self, method: str, seconds: float, outcome: str) -> None:
        """One request was answered `seconds` after dispatch began; `outcome` is "ok" or the wire code of its error."""
        self.requests += 1
        counts = self._methods.get(method) or self._unknown
        counts.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        counts.seconds += seconds
        if seconds > self._slow_s:
            self._note_slow(method, seconds, outcome)
        if outcome == OK:
            counts.outcomes[OK] += 1
            return
        self.errors += 1
        code = outcome if outcome in BY_CODE else "internal"
        counts.outcomes[code] = counts.outcomes.get(code, 0) + 1

    def waited(self, seconds: float) -> None:
        """One request got its turn after so long; those that need not wait are not told of."""
        self._waits.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._waits.seconds += seconds

    def times(self) -> Iterator[tuple[str, list[int], float]]:
        """Of each method: its requests by BUCKETS_S, and their seconds together."""
        for method, counts in (*self._methods.items(), (UNKNOWN, self._unknown)):
            yield method, counts.buckets, counts.seconds

    def _note_slow(self, method: str, seconds: float, outcome: str) -> None:
        at_s = wall_s()
        span = getattr(log.handling.get(), "span", None)
        known = method if method in self._methods else UNKNOWN
        call = SlowCall(seconds, known, outcome, at_s, span.trace_id if span is not None else "")
        self.slowest = [it for it in self.slowest if it.at_s > at_s - SLOW_FOR_S]
        self.slowest = sorted((*self.slowest, call), reverse=True)[:SLOWEST]
        self._slow_s = self.slowest[-1].seconds if len(self.slowest) == SLOWEST else SLOW_S

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """At each scrape, tell what `read` returns. It runs on the loop, be quick; one that raises is left out."""
        self._reads.append(("gauge", name, help, read))

    def counter(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Like `gauge` for a number that only grows; `name` ends in `_total`."""
        self._reads.append(("counter", name, help, read))

    def counters(self, name: str, help: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Like `counter` for several: `read` returns the numbers by the values of `label`."""
        self._labelled.append(("counter", name, help, label, read))

    def gauges(self, name: str, help: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Like `gauge` for several: `read` returns the numbers by the values of `label`."""
        self._labelled.append(("gauge", name, help, label, read))

    def render(self) -> bytes:
        """The text exposition of everything, process metrics included."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """All families as of now, in the order in which they are shown."""
        yield from self._request_families()
        labels = (self.agent,)
        for kind, name, help_, read in self._reads:
            try:
                value = float(read())
            except Exception as exc:  # noqa: BLE001 - one broken reading must not hide all the others
                log.get_logger(__name__).warning("metrics.reading_failed", metric=name, error=repr(exc))
                continue
            family: CounterMetricFamily | GaugeMetricFamily
            if kind == "counter":
                family = CounterMetricFamily(name, help_, labels=("agent",))
            else:
                family = GaugeMetricFamily(name, help_, labels=("agent",))
            family.add_metric(labels, value)
            yield family
        for kind, name, help_, label, read_all in self._labelled:
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            shown = make(name, help_, labels=("agent", label))
            for key, number in read_all().items():
                shown.add_metric((self.agent, key), number)
            yield shown
        yield from _process_families()

    def _request_families(self) -> Iterator[Metric]:
        total = CounterMetricFamily("agent_requests_total", "Requests answered", labels=("agent", "method", "outcome"))
        duration = HistogramMetricFamily(
            "agent_request_duration_seconds", "From dispatch to answer, in seconds", labels=("agent", "method")
        )
        shown = dict(self._methods)
        if any(self._unknown.buckets):
            shown[UNKNOWN] = self._unknown
        for method, counts in shown.items():
            for outcome, count in counts.outcomes.items():
                total.add_metric((self.agent, method, outcome), count)
            duration.add_metric((self.agent, method), _cumulative(counts.buckets), counts.seconds)
        waits = HistogramMetricFamily(
            "agent_queue_wait_seconds", "How long requests waited for their turn that had to", labels=("agent",)
        )
        waits.add_metric((self.agent,), _cumulative(self._waits.buckets), self._waits.seconds)
        yield total
        yield duration
        yield waits


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    below, found = 0, []
    for bound, count in zip(_BOUNDS, buckets, strict=True):
        below += count
        found.append((bound, float(below)))
    return found


def _process_families() -> Iterator[Metric]:
    """The usual process metrics, and those that show whether an idle agent really sleeps."""
    # The library's collector reads /proc/self, so the one it makes at import is right in every fork.
    yield from PROCESS_COLLECTOR.collect()
    yield GaugeMetricFamily("process_threads", "Threads, those of C libraries included.", process.threads())
    switches = CounterMetricFamily("process_context_switches_total", "Context switches by kind.", labels=("kind",))
    for kind, count in process.switches()._asdict().items():
        switches.add_metric((kind,), count)
    yield switches
