from __future__ import annotations

import pytest

from startup.plan.phase import Phase
from startup.view import document
from startup.view.summary import summary_lines
from startup.view.verdict import judge
from tests.startup.view import golden
from tests.startup.view.fleets import T0_S, a_row, levelled, some_states


@pytest.mark.parametrize("width", [80, 200])
def test_a_start_that_failed_in_part_tells_what_failed_with_its_log_and_who_was_skipped(width: int) -> None:
    rows = {row.id: row for row in some_states()}
    verdict = judge(rows, list(rows), quiet_s=60)
    tails = {
        row.id: ["Traceback (most recent call last):", "FileNotFoundError: model.bin"]
        for row in some_states()
        if row.phase is Phase.FAILED
    }
    lines = summary_lines(rows, list(rows), verdict, elapsed_s=1.5, began_s=T0_S, log_tails=tails, width=width)
    golden.check(f"summary_{width}.txt", lines)


def test_a_good_start_is_three_lines() -> None:
    rows = {row.id: row for row in levelled(84)}
    lines = summary_lines(
        rows, list(rows), judge(rows, list(rows)), elapsed_s=0.94, began_s=T0_S, log_tails={}, width=400
    )
    assert lines[0] == "84 agents ready in 940 ms on 2 machines"
    assert lines[1].startswith("slowest path: Member009 69 ms > Member012 ")
    assert lines[2] == "call one: agentkit describe Member083; agentkit call Member083 METHOD key=value"
    assert len(lines) == 3


def test_what_ran_before_the_command_is_not_on_its_path() -> None:
    rows = {row.id: row for row in levelled(10)}
    lines = summary_lines(
        rows, list(rows), judge(rows, list(rows)), elapsed_s=0.01, began_s=T0_S + 60, log_tails={}, width=80
    )
    assert not any("slowest" in line for line in lines)


def test_the_document_of_up_has_the_promised_keys() -> None:
    rows = {row.id: row for row in some_states()}
    vision = next(row.id for row in some_states() if row.id.name == "Vision")
    told = document.up("reference", rows, list(rows), began_s=T0_S, elapsed_s=1.25, log_tails={vision: ["boom"]})
    assert list(told) == ["cluster", "elapsed_s", "ready", "degraded", "failed", "skipped", "agents"]
    assert told["ready"] == 3
    assert {
        "agent": "Vision",
        "machine": "main_pc",
        "reason": "on_start raised FileNotFoundError: model.bin",
        "log_tail": ["boom"],
    } in told["failed"]
    assert told["skipped"] == [{"agent": "Describer", "because": "main_pc/Vision"}]
    assert told["agents"][0] == {
        "name": "Database", "instance": "Database", "machine": "main_pc", "phase": "ready", "pid": told["agents"][0]["pid"],
        "endpoint": "tcp://127.0.0.1:10100", "health_url": None, "forked_s": 0.02, "ready_s": 0.1, "restarts": 0,
    }  # fmt: skip
    assert told["agents"][-1]["instance"] == "Worker#1"


def test_status_adds_figures_to_the_same_list() -> None:
    row = a_row("m/A", requests=3, errors=1, memory_mb=4.5)
    told = document.agent_with_figures(row, T0_S + 60.02)
    assert document.agent(row, T0_S).items() <= told.items()
    assert (told["health"], told["memory_mb"], told["requests"], told["errors"], told["uptime_s"]) == (
        "ok",
        4.5,
        3,
        1,
        60.0,
    )
