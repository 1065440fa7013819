"""The exposition that Prometheus reads, parsed with the library's own parser."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agentkit.errors import BY_CODE
from agentkit.observe.metrics import BUCKETS_S, AgentMetrics


def samples(metrics: AgentMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics: AgentMetrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def test_requests_are_counted_by_method_and_outcome() -> None:
    metrics = AgentMetrics("Echo", ["echo", "work"])
    for outcome in ("ok", "ok", "overloaded"):
        metrics.finished("echo", 0.002, outcome)
    count = "agent_requests_total"
    assert value(metrics, count, agent="Echo", method="echo", outcome="ok") == 2
    assert value(metrics, count, agent="Echo", method="echo", outcome="overloaded") == 1
    assert value(metrics, count, agent="Echo", method="work", outcome="ok") == 0
    assert (metrics.requests, metrics.errors) == (3, 1)


def test_durations_fall_into_cumulative_buckets_bounds_included() -> None:
    metrics = AgentMetrics("Echo", ["echo"])
    for seconds in (0.0005, 0.0006, 90.0):
        metrics.finished("echo", seconds, "ok")
    labels = {"agent": "Echo", "method": "echo"}
    name = "agent_request_duration_seconds"
    assert value(metrics, f"{name}_bucket", **labels, le="0.0005") == 1
    assert value(metrics, f"{name}_bucket", **labels, le="0.001") == 2
    assert value(metrics, f"{name}_bucket", **labels, le="60.0") == 2
    assert value(metrics, f"{name}_bucket", **labels, le="+Inf") == 3
    assert value(metrics, f"{name}_count", **labels) == 3
    assert value(metrics, f"{name}_sum", **labels) == pytest.approx(90.0011)


def test_callers_can_grow_neither_methods_nor_outcomes() -> None:
    metrics = AgentMetrics("Echo", ["echo"])
    for n in range(100):
        metrics.finished(f"guess-{n}", 0.001, "unknown_method")
        metrics.finished("echo", 0.001, f"code from a newer peer {n}")
    found = {labels for name, labels in samples(metrics) if name == "agent_requests_total"}
    assert {dict(labels)["method"] for labels in found} == {"echo", "unknown"}
    assert value(metrics, "agent_requests_total", agent="Echo", method="echo", outcome="internal") == 100


def test_the_method_unknown_shows_only_once_it_was_needed() -> None:
    metrics = AgentMetrics("Echo", ["echo"])
    assert b"unknown" not in metrics.render()
    metrics.finished("x", 0.1, "unknown_method")
    assert b'method="unknown"' in metrics.render()


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "?"]), st.floats(0, 100), st.sampled_from(["ok", *BY_CODE]))))
def test_totals_agree_with_what_was_counted(requests: Iterable[tuple[str, float, str]]) -> None:
    metrics = AgentMetrics("X", ["a", "b"])
    for method, seconds, outcome in requests:
        metrics.finished(method, seconds, outcome)
    found = samples(metrics)
    assert sum(v for (name, _), v in found.items() if name == "agent_requests_total") == metrics.requests
    assert sum(v for (name, _), v in found.items() if name.endswith("seconds_count")) == metrics.requests
    assert metrics.errors == sum(outcome != "ok" for _, _, outcome in requests)
    for method in ("a", "b"):
        labels = frozenset({("agent", "X"), ("method", method)})
        buckets = [
            found["agent_request_duration_seconds_bucket", labels | {("le", str(le))}] for le in (*BUCKETS_S, "+Inf")
        ]
        assert buckets == sorted(buckets)


def test_gauges_and_counters_are_read_at_the_scrape() -> None:
    metrics = AgentMetrics("Echo", [])
    now = {"in_flight": 1, "hits": 5}
    metrics.gauge("agent_requests_in_flight", "Requests being handled", lambda: now["in_flight"])
    metrics.counter("agent_reader_safety_hits_total", "Edges missed", lambda: now["hits"])
    assert value(metrics, "agent_requests_in_flight", agent="Echo") == 1
    now["in_flight"] = 7
    assert value(metrics, "agent_requests_in_flight", agent="Echo") == 7
    assert value(metrics, "agent_reader_safety_hits_total", agent="Echo") == 5
    assert b"# TYPE agent_reader_safety_hits_total counter" in metrics.render()


def test_numbers_with_a_label_of_their_own_are_shown_while_there_are_any() -> None:
    book = AgentMetrics("a", [])
    values: dict[str, float] = {}
    book.gauges("agent_breaker_open", "Open breakers", "instance", lambda: values)
    book.counters("agent_call_retries_total", "Retries", "peer", lambda: values)
    assert "m/X" not in book.render().decode()
    values["m/X"] = 1.0
    text = book.render().decode()
    assert 'agent_breaker_open{agent="a",instance="m/X"} 1.0' in text
    assert 'agent_call_retries_total{agent="a",peer="m/X"} 1.0' in text


def test_a_broken_reading_is_left_out_and_logged_and_the_rest_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    metrics = AgentMetrics("Echo", [])
    metrics.gauge("agent_broken", "Raises", lambda: 1 / 0)
    metrics.gauge("agent_whole", "Does not", lambda: 1.0)
    with caplog.at_level(logging.WARNING):
        assert value(metrics, "agent_broken", agent="Echo") is None
    assert value(metrics, "agent_whole", agent="Echo") == 1
    assert "metrics.reading_failed" in caplog.text


def test_the_process_is_described() -> None:
    metrics = AgentMetrics("Echo", [])
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds", "threads"):
        assert value(metrics, f"process_{name}") is not None, name
    assert value(metrics, "process_context_switches_total", kind="voluntary") is not None
    assert value(metrics, "agent_log_lines_dropped_total", agent="Echo") == 0


def test_two_agents_in_one_process_do_not_share_counts() -> None:
    first, second = AgentMetrics("A", ["x"]), AgentMetrics("B", ["x"])
    first.finished("x", 0.1, "ok")
    assert second.requests == 0
    assert b'agent="A"' not in second.render()


def test_names_that_need_escaping_do_not_break_the_exposition() -> None:
    metrics = AgentMetrics('we"ird\\\n', ['me"thod'])
    metrics.finished('me"thod', 0.1, "ok")
    assert value(metrics, "agent_requests_total", agent='we"ird\\\n', method='me"thod', outcome="ok") == 1
