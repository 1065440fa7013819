"""What a process tells of itself to whoever debugs it: threads, tasks, memory, slow calls. In this process."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from typing import Any

import pytest

from agentkit.clock import now_s
from agentkit.debug import memory, slow, stacks
from agentkit.errors import BadRequest
from agentkit.observe.metrics import BUCKETS_S, SLOWEST, AgentMetrics
from startup.view import debug as view


class Marked:
    """A type that nobody else has."""


async def inner(gate: asyncio.Event) -> None:
    await gate.wait()


async def outer(gate: asyncio.Event) -> None:
    await inner(gate)


def functions(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["function"] for frame in frames]


async def test_a_task_shows_the_whole_way_to_what_it_waits_for_and_its_age() -> None:
    gate = asyncio.Event()
    task = asyncio.create_task(outer(gate), name="waiter")
    await asyncio.sleep(0)
    told = stacks.tasks({task: (now_s() - 5, "a test")})
    (found,) = [it for it in told["tasks"] if it["name"] == "waiter"]
    assert functions(found["frames"]) == ["outer", "inner", "Event.wait"]
    assert (found["waits_for"] != "", found["for"], found["age_s"] >= 5) == (True, "a test", True)
    gate.set()
    await task


def test_a_thread_shows_where_it_is_and_how_old_it_is() -> None:
    gate, begun = threading.Event(), threading.Event()

    def holding() -> None:
        begun.set()
        gate.wait()

    thread = threading.Thread(target=holding, name="holder", daemon=True)
    thread.start()
    begun.wait()
    try:
        told = stacks.threads()
        (found,) = [it for it in told["threads"] if it["name"] == "holder"]
        assert any(name.endswith("holding") for name in functions(found["frames"]))
        assert (found["age_s"] is not None, found["daemon"]) == (True, True)
        assert functions(told["threads"][0]["frames"])[-1] == "threads", "whoever asks comes first"
    finally:
        gate.set()
        thread.join()


async def test_the_heap_is_told_by_type_and_traced_only_while_somebody_watches() -> None:
    kept = [Marked() for _ in range(500)]
    told = await memory.heap(0, 100)
    assert told["objects"] > 500
    assert "places" not in told

    more: list[Marked] = []

    async def grow() -> None:
        await asyncio.sleep(0)
        assert tracemalloc.is_tracing()
        more.extend(Marked() for _ in range(5_000))

    growing = asyncio.create_task(grow())
    traced = await memory.heap(0.01, 100)
    await growing
    assert any(it["file"] == __file__ and it["count"] >= 5_000 for it in traced["places"])
    assert not tracemalloc.is_tracing()
    assert any(it["type"].endswith("test_debug.Marked") for it in traced["types"])
    assert len(kept) == 500
    for seconds in (-1, 61, float("nan")):
        with pytest.raises(BadRequest, match="want 0 to 60"):
            await memory.heap(seconds, 10)


def test_the_collector_says_what_it_found() -> None:
    class Cycle:
        pass

    one, other = Cycle(), Cycle()
    one.other, other.one = other, one  # type: ignore[attr-defined]
    del one, other
    told = memory.collector(collects=True, rows=5)
    assert told["found"] >= 2
    assert len(told["types"]) == 5
    assert "found" not in memory.collector(collects=False, rows=5)


def test_quantiles_lie_within_the_bucket_that_they_fall_into() -> None:
    buckets = [0] * (len(BUCKETS_S) + 1)
    buckets[4] = 98  # 5 to 10 ms
    buckets[9] = 2  # 250 to 500 ms
    assert 0.005 <= slow.quantile(buckets, 0.5) <= 0.01
    assert 0.25 <= slow.quantile(buckets, 0.99) <= 0.5
    assert slow.quantile([*[0] * len(BUCKETS_S), 1], 0.5) == BUCKETS_S[-1]


def test_the_slowest_calls_of_late_are_kept_and_quick_ones_are_not() -> None:
    metrics = AgentMetrics("A", ["quick", "slow"])
    for n in range(100):
        metrics.finished("quick", 0.001, "ok")
        metrics.finished("slow", 0.01 * (n + 1), "ok")
    metrics.finished("nobody's", 9.0, "unknown_method")
    told = slow.slowest(metrics, 100)
    assert [it["method"] for it in told["methods"]][-1] == "quick"
    assert (len(told["calls"]), told["calls"][0]["method"], told["calls"][1]["seconds"]) == (SLOWEST, "unknown", 1.0)
    assert next(it["max_s"] for it in told["methods"] if it["method"] == "slow") == 1.0
    assert next(it["max_s"] for it in told["methods"] if it["method"] == "quick") is None


async def test_every_answer_can_be_read() -> None:
    for what, answer in (
        ("stacks", {**stacks.threads(), **stacks.tasks({})}),
        ("tasks", stacks.tasks({})),
        ("heap", await memory.heap(0, 5)),
        ("gc", memory.collector(collects=True, rows=5)),
        ("slow", slow.slowest(AgentMetrics("A", []), 5)),
        ("stacks", {"from": "log", "why": "is stuck", "lines": ['  File "x.py", line 1 in f']}),
    ):
        assert view.lines(what, answer, width=80, rows=5)
