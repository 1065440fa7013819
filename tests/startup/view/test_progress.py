from __future__ import annotations

import io
from dataclasses import replace

import pytest

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.row import AgentRow, Stamps
from startup.view.progress import LINE_EVERY_S, LiveBoard, SparseLines, board
from tests.startup.view import golden
from tests.startup.view.fleets import T0_S, a_row, levelled, some_states


def half_way(agents: int) -> dict[AgentId, AgentRow]:
    rows = levelled(agents)
    done, begun = agents * 6 // 10, agents * 7 // 10
    moved = []
    for number, row in enumerate(rows):
        if number >= begun:
            row = replace(row, phase=Phase.WAITING, waiting_for=(str(rows[begun - 1].id.name), "Redis"))
        elif number >= done:
            row = replace(row, phase=Phase.STARTING, stamps=Stamps(forked_s=T0_S + 1 + number / 1000))
        moved.append(row)
    moved[-1] = replace(
        moved[-1], phase=Phase.FAILED, reason="on_start raised ValueError: a long sentence that says what went wrong"
    )
    moved[-2] = replace(moved[-2], phase=Phase.SKIPPED, because=str(moved[-1].id))
    moved[-3] = replace(moved[-3], phase=Phase.BACKOFF, last_exit="exit 1", reason="starts again in 2 s")
    return {row.id: row for row in moved}


@pytest.mark.parametrize("width", [80, 200])
def test_half_a_start_shows_groups_starters_waits_and_failures(width: int) -> None:
    rows = half_way(84)
    lines = board("fleet84", rows, list(rows), elapsed_s=0.62, now_s=T0_S + 2, width=width, height=40)
    golden.check(f"board84_{width}.txt", lines, width=width)


@pytest.mark.parametrize("agents", [1, 3, 84, 1000])
@pytest.mark.parametrize("height", [3, 8, 24, 60])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_board_fits_every_terminal(agents: int, height: int, width: int) -> None:
    rows = half_way(max(agents, 9)) if agents > 1 else {row.id: row for row in some_states()[:1]}
    lines = board("a-cluster", rows, list(rows), elapsed_s=3, now_s=T0_S + 5, width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_before_any_row_arrived_everything_is_open() -> None:
    wanted = [row.id for row in some_states()]
    assert "0/9 ready" in board("c", {}, wanted, elapsed_s=0, now_s=T0_S, width=80, height=24)[0]


def test_a_repaint_goes_over_the_last_one_and_leaving_takes_it_away() -> None:
    out = io.StringIO()
    with LiveBoard(out) as live:
        live.paint(["one", "two"], 1.0)
        assert live.wait_s(1.04) == pytest.approx(0.06)
        assert live.wait_s(1.2) == 0.0
        live.paint(["three"], 1.2)
    text = out.getvalue()
    assert "\x1b[2A\rthree\x1b[K\n\x1b[J" in text
    assert text.endswith("\x1b[1A\r\x1b[J\x1b[?25h")


def test_without_a_terminal_a_short_start_says_nothing_and_a_failure_is_said_once() -> None:
    rows = {row.id: row for row in [a_row("m/A"), a_row("m/B", Phase.FAILED, reason="exit 1")]}
    sparse = SparseLines()
    assert sparse.lines(rows, list(rows), elapsed_s=0.5) == ["m/B: failed: exit 1"]
    assert sparse.lines(rows, list(rows), elapsed_s=0.6) == []
    rows |= {row.id: row for row in [a_row("m/C", Phase.WAITING, waiting_for=("Redis",)), a_row("m/D", Phase.STARTING)]}
    assert sparse.lines(rows, list(rows), elapsed_s=LINE_EVERY_S) == [
        "1/4 ready after 2.00 s; starting D; waiting 1 for Redis"
    ]
    assert sparse.lines(rows, list(rows), elapsed_s=LINE_EVERY_S + 0.1) == []
