from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from startup.view import errors as view
from tests.startup.view import golden
from tests.startup.view.fleets import T0_S


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def group(**changes: Any) -> dict[str, Any]:
    return {
        "id": "643688aeeb9101c6",
        "agent": "main_pc/TaskManager",
        "machine": "main_pc",
        "severity": "error",
        "kind": "report",
        "place": "try # failed",
        "message": "try 19 failed",
        "count": 100_000,
        "first_s": T0_S - 3600,
        "last_s": T0_S - 3,
        "resolved_s": None,
        "resolved_by": "",
        "reopened": 0,
        **changes,
    }


RAISED = group(
    id="4a8067301234abcd",
    agent="pc2/Store#1",
    severity="critical",
    kind="sqlite3.OperationalError",
    place="agents/store.py:88",
    message="save raised OperationalError: database is locked\nand a second line",
    count=3,
    last_s=T0_S - 90_000,
    reopened=2,
)
GROUPS = [
    group(),
    RAISED,
    group(id="c96455a2bca9641b", severity="warning", message="cache is cold", count=1, resolved_s=T0_S - 60, resolved_by="ops@pc"),
]  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_errors_are_one_line_each(width: int) -> None:
    golden.check(f"errors_{width}.txt", view.table(GROUPS, now_s=T0_S, width=width), width=width)


@pytest.mark.parametrize("width", [80, 200])
def test_errors_that_come_are_one_line_each(width: int) -> None:
    golden.check(f"errors_follow_{width}.txt", [view.line(found, width=width) for found in GROUPS], width=width)


def test_one_error_is_shown_in_full() -> None:
    trace = 'Traceback (most recent call last):\n  File "agents/store.py", line 88, in save\n    db.commit()\n'
    full = {**RAISED, "context": {"method": "save", "rows": 17, "ids": "[1, 2, ...]"}, "trace": trace + "x" * 300}
    golden.check("error_80.txt", view.details(full, now_s=T0_S, width=80))
    resolved = {**GROUPS[2], "context": {}, "trace": ""}
    assert "  state     resolved by ops@pc 1m00s ago" in view.details(resolved, now_s=T0_S, width=80)
