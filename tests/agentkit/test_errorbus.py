"""The bus inside an agent: every report is counted, few are told in full, batches are handed over once, from any thread."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentkit.errorbus import BATCH_CHARS, BATCH_GROUPS, MAX_GROUPS, TOLD_AT_ONCE, TOLD_OF_ONE_KIND, ErrorBus
from agentkit.observe import reports

STORM = 100_000


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now_s(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return 1_000_000 + self.time_s


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def bus(clock: Hands) -> ErrorBus:
    return ErrorBus(clock=clock)


def taken(bus: ErrorBus) -> list[reports.ErrorGroup]:
    """All that waits, as a node would take it."""
    found = []
    while (batch := bus.batch()) is not None:
        found += batch.groups
        bus.taken(batch)
    return found


def test_alike_reports_are_one_group_with_their_count_and_times(bus: ErrorBus, clock: Hands) -> None:
    bus.report("warning", "host 1 away", {"host": 1})
    clock.time_s += 60
    bus.report("warning", "host 2 away", {"host": 2})
    (group,) = taken(bus)
    assert (group.count, group.message, group.context, group.where) == (2, "host 2 away", {"host": 2}, "host # away")
    assert group.last_s - group.first_s == 60


def test_an_exception_gives_kind_place_and_traceback(bus: ErrorBus) -> None:
    try:
        raise KeyError("x")
    except KeyError as exc:
        bus.report("error", "lookup failed", exc=exc)
    (group,) = taken(bus)
    assert (group.kind, group.message) == ("KeyError", "lookup failed")
    assert "test_errorbus.py:" in group.where
    assert group.trace.startswith("Traceback")


def test_the_same_error_of_another_severity_is_counted_apart(bus: ErrorBus) -> None:
    bus.report("error", "x")
    bus.report("critical", "x")
    assert [(group.severity, group.count) for group in taken(bus)] == [("error", 1), ("critical", 1)]
    assert bus.reported == {"info": 0, "warning": 0, "error": 1, "critical": 1}


@pytest.mark.slow
def test_a_storm_from_many_threads_is_counted_exactly_and_costs_bounded_memory() -> None:
    bus = ErrorBus()

    def storm(thread: int) -> None:
        for n in range(STORM // 4):
            bus.report("error", f"thread {thread} failed for the {n}th time", {"n": n})

    tracemalloc.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(storm, range(4)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (group,) = taken(bus)
    assert group.count == STORM == bus.reported["error"]
    assert peak_bytes < 4 * 1024 * 1024
    assert bus.suppressed > STORM * 0.9


def test_a_storm_of_different_errors_is_bounded_and_counted_exactly() -> None:
    bus = ErrorBus()
    letters = "abcdefghijklmnop"
    for n in range(STORM // 10):
        name = "".join(letters[int(digit)] for digit in str(n))
        bus.report("error", f"host {name} is away", {"padding": "x" * 10_000})
    assert len(bus.groups) == MAX_GROUPS + 1
    groups = taken(bus)
    assert sum(group.count for group in groups) == STORM // 10
    assert {group.where for group in groups} >= {"host a is away", reports.MANY}


def test_few_of_a_storm_are_told_in_full_and_a_later_one_says_how_many_were_not(bus: ErrorBus, clock: Hands) -> None:
    told = [bus.report("error", f"try {n}") for n in range(1000)]
    assert sum(telling is not None for telling in told) == TOLD_OF_ONE_KIND
    assert bus.suppressed == 1000 - TOLD_OF_ONE_KIND
    clock.time_s += 1
    again = bus.report("error", "try 1001")
    assert again is not None
    assert again.untold == 1000 - TOLD_OF_ONE_KIND
    assert bus.unmentioned() == 0


def test_a_storm_of_one_kind_leaves_room_for_another(bus: ErrorBus) -> None:
    for n in range(1000):
        bus.report("error", f"try {n}")
    assert bus.report("critical", "something else") is not None


def test_many_kinds_together_are_told_within_the_agents_limit(bus: ErrorBus, clock: Hands) -> None:
    def told() -> int:
        return sum(bus.report("error", f"kind {chr(97 + n % 26)}{chr(97 + n // 26)}") is not None for n in range(400))

    assert told() == TOLD_AT_ONCE
    clock.time_s += 2
    assert told() == 20
    assert bus.unmentioned() == 400 * 2 - TOLD_AT_ONCE - 20
    assert bus.unmentioned() == 0


def test_a_batch_stays_the_same_until_it_is_taken(bus: ErrorBus) -> None:
    bus.report("error", "one")
    first = bus.batch()
    bus.report("error", "one")
    assert first is not None
    assert bus.batch() is first
    assert (first.reports, bus.waiting) == (1, 2)
    bus.taken(first)
    second = bus.batch()
    assert second is not None
    assert (second.number, second.source, second.reports) == (first.number + 1, first.source, 1)
    bus.taken(first)  # told twice: the second is not taken for the first
    assert bus.batch() is second


def test_batches_are_bounded_in_kinds_and_size(bus: ErrorBus, clock: Hands) -> None:
    def deep(kind: str) -> None:
        bus.report("error", kind, exc=_with_a_long_trace(kind))

    for n in range(200):
        clock.time_s += 1
        deep(f"{chr(97 + n % 26)}{chr(97 + n // 26)}")
    sizes = []
    while (batch := bus.batch()) is not None:
        sizes.append(len(batch.groups))
        assert sum(len(group.trace) for group in batch.groups) <= BATCH_CHARS
        bus.taken(batch)
    assert max(sizes) <= BATCH_GROUPS
    assert sum(sizes) == 200


def _with_a_long_trace(kind: str) -> BaseException:
    cls = type(kind, (Exception,), {})
    try:
        raise cls("x" * 100_000)
    except Exception as exc:
        return exc


def test_what_a_node_refuses_for_good_is_counted_as_lost(bus: ErrorBus) -> None:
    bus.report("error", "x")
    batch = bus.batch()
    assert batch is not None
    bus.taken(batch, refused=True)
    assert (bus.lost, bus.waiting) == (1, 0)


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_whatever_is_reported_nothing_is_raised(bus: ErrorBus) -> None:
    anything: Any = bus
    for severity, message in ((None, None), (7, b"x"), ("error", Rude()), (Rude(), Rude()), ("warn", "\ud800")):
        anything.report(severity, message, {"a": Rude(), 7: Rude()})
    assert sum(bus.reported.values()) + bus.lost == 5


def test_a_report_made_while_one_is_made_does_not_deadlock(bus: ErrorBus) -> None:
    class Reports:
        def __str__(self) -> str:
            bus.report("warning", "from inside")
            return "outside"

    ended = threading.Event()

    def report() -> None:
        bus.report("error", Reports(), {"field": Reports()})
        ended.set()

    thread = threading.Thread(target=report)
    thread.start()
    assert ended.wait(10)
    thread.join()
    assert bus.reported["warning"] == 2
