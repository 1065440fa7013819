from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from startup.view import traces as view
from tests.startup.view import golden
from tests.startup.view.fleets import T0_S

ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def span(
    id: str, parent: str, agent: str, name: str, kind: str, after_ms: float, ms: float, **more: Any
) -> dict[str, Any]:
    return {
        "trace_id": ID, "span_id": id, "parent_id": parent, "agent": agent, "name": name, "kind": kind,
        "start_s": T0_S + after_ms / 1000, "duration_s": ms / 1000, "code": "ok", **more,
    }  # fmt: skip


SPANS = [
    span("a", "script", "main_pc/Gateway", "submit", "server", 0.0, 42.5),
    span("b", "a", "main_pc/Gateway", "TaskManager.create", "client", 1.5, 30.0),
    span("c", "b", "pc2/TaskManager#1", "create", "server", 2.1, 28.9),
    span("d", "c", "pc2/TaskManager#1", "Store.put", "client", 3.0, 12.0, code="overloaded"),
    span("e", "d", "pc2/Store", "put", "server", 3.4, 11.0, code="overloaded"),
    span("f", "c", "pc2/TaskManager#1", "Audit.a_method_with_a_name_that_is_rather_long", "client", 16.0, 9.0),
    span("g", "a", "main_pc/Gateway", "Mailer.send", "client", 33.0, 1_250.0),
]


@pytest.mark.parametrize("width", [80, 200])
def test_a_trace_is_the_tree_of_its_calls(width: int) -> None:
    (trace,) = view.traces(reversed(SPANS))
    golden.check(f"trace_{width}.txt", view.tree(trace, width=width), width=width)


def test_traces_are_listed_the_latest_first() -> None:
    other = [{**one, "trace_id": "c" * 32, "start_s": one["start_s"] - 90, "code": "not_found"} for one in SPANS[:3]]
    lines = view.table(view.traces([*other, *SPANS]), now_s=T0_S + 5, width=80)
    golden.check("traces_80.txt", lines, width=80)


def test_spans_that_claim_to_be_their_own_ancestors_are_shown_and_nothing_hangs() -> None:
    circle = [
        span("a", "b", "m/X", "x", "server", 0, 1),
        span("b", "a", "m/X", "x", "server", 0, 1),
        span("c", "c", "m/X", "x", "server", 0, 1),
    ]
    (trace,) = view.traces(circle)
    assert len(view.tree(trace, width=80)) > 3


def test_colours_mark_what_failed() -> None:
    (trace,) = view.traces(SPANS)
    assert sum("\x1b[31moverloaded" in line for line in view.tree(trace, width=80, colour=True)) == 2
