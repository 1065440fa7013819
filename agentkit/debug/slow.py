"""Which methods are slow: half and 99 of a hundred of each method's calls, from its histogram, and the slowest calls of late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentkit.clock import wall_s
from agentkit.observe.metrics import BUCKETS_S, AgentMetrics


def slowest(metrics: AgentMetrics, rows: int) -> dict[str, Any]:
    """Methods, the slowest first, and calls. Times in seconds; those of methods are as exact as the histogram's bounds."""
    methods: list[dict[str, Any]] = [
        {
            "method": name,
            "calls": sum(buckets),
            "p50_s": quantile(buckets, 0.5),
            "p99_s": quantile(buckets, 0.99),
            "mean_s": round(seconds / sum(buckets), 6),
            "max_s": max((it.seconds for it in metrics.slowest if it.method == name), default=None),
        }
        for name, buckets, seconds in metrics.times()
        if any(buckets)
    ]
    methods.sort(key=lambda it: -it["p99_s"])
    calls = [
        {
            "method": it.method,
            "seconds": round(it.seconds, 6),
            "outcome": it.outcome,
            "ago_s": round(max(0.0, wall_s() - it.at_s), 1),
            "trace_id": it.trace_id,
        }
        for it in sorted(metrics.slowest, key=lambda it: -it.seconds)
    ]
    return {"methods": methods[:rows], "calls": calls[:rows]}


def quantile(buckets: Sequence[int], part: float) -> float:
    """Linearly between the bounds of the bucket that it falls into; the last bound for what is above all."""
    wanted, below = part * sum(buckets), 0
    lower = 0.0
    for bound, count in zip(BUCKETS_S, buckets, strict=False):
        if below + count >= wanted and count:
            return round(lower + (bound - lower) * (wanted - below) / count, 6)
        below += count
        lower = bound
    return BUCKETS_S[-1]
