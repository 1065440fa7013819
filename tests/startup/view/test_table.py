from __future__ import annotations

from typing import Any

import pytest

from startup.view.table import agent_lines, status_lines
from tests.startup.view import golden
from tests.startup.view.fleets import T0_S, levelled, some_states


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "machine": "main_pc",
        "node": {"pid": 77, "uptime_s": 7323.0, "memory_mb": 41.7},
        "revision": {"number": 7, "author": "ops@pc", "time_s": T0_S - 200, "down": False},
        "peers": {"pc2": "alive"},
        "revisions": {"main_pc": 7, "pc2": 7},
        **changes,
    }


@pytest.mark.parametrize("width", [80, 200])
def test_status_shows_every_state_and_why(width: int) -> None:
    lines = status_lines("reference", [answer()], some_states(), now_s=T0_S + 60, width=width)
    golden.check(f"status_{width}.txt", lines, width=width)


@pytest.mark.parametrize("width", [80, 200])
def test_status_of_84_agents_is_one_line_each(width: int) -> None:
    lines = status_lines("fleet84", [answer()], levelled(84), now_s=T0_S + 60, width=width)
    golden.check(f"status84_{width}.txt", lines, width=width)
    assert len("\n".join(lines).splitlines()) <= 84 + 7


def test_why_a_revision_was_undone_is_told() -> None:
    note = "revision 6 was rolled back: main_pc/A did not become ready: the model is not there"
    undone = answer(revision={"number": 7, "author": "ops@pc", "time_s": T0_S, "down": False, "note": note})
    assert note in status_lines("c", [undone], [], now_s=T0_S, width=200)
    assert any(
        line.startswith("revision 6 was rolled back") for line in status_lines("c", [undone], [], now_s=T0_S, width=80)
    )


def test_machines_on_different_revisions_are_told() -> None:
    lines = status_lines("c", [answer(revisions={"main_pc": 7, "pc2": 6})], [], now_s=T0_S, width=80)
    assert (
        "machines are on different revisions (main_pc 7 by ops@pc, pc2 6): `agentkit up` brings them together"
        in "\n".join(lines)
    )


def test_revisions_of_one_number_that_are_not_the_same_are_told() -> None:
    digests = {"main_pc": "aa", "pc2": "bb"}
    lines = status_lines("c", [answer(revisions={"main_pc": 7, "pc2": 7}, digests=digests)], [], now_s=T0_S, width=80)
    assert "machines are on different revisions (main_pc 7 by ops@pc, pc2 7)" in "\n".join(lines)
    same = answer(digests=dict.fromkeys(digests, "aa"), revision={**answer()["revision"], "digest": "aa"})
    assert "different" not in "\n".join(status_lines("c", [same], [], now_s=T0_S, width=80))


@pytest.mark.parametrize("width", [80, 200])
def test_a_machine_that_is_unreachable_says_for_how_long_and_a_wrong_clock_by_how_much(width: int) -> None:
    cut_off = answer(peers={"pc2": "unreachable"}, silent_s={"pc2": 42.0})
    assert "pc2: unreachable for 42 s" in status_lines("c", [cut_off], [], now_s=T0_S, width=width)
    ahead = {**answer(), "machine": "pc2", "clock_s": 3600.0}
    (line,) = [line for line in status_lines("c", [answer(), ahead], [], now_s=T0_S, width=width) if "pc2:" in line]
    assert line.endswith("its clock 1h00m ahead")


def test_colours_do_not_move_columns() -> None:
    import re

    bare = status_lines("c", [answer()], some_states(), now_s=T0_S, width=200)
    painted = status_lines("c", [answer()], some_states(), now_s=T0_S, width=200, colour=True)
    assert painted != bare
    assert [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in painted] == bare


def test_one_agent_is_shown_with_all_that_is_known() -> None:
    vision = some_states()[2]
    reporter = some_states()[5]
    lines = agent_lines(vision, now_s=T0_S + 60, width=80, log_tail=["Traceback (most recent call last):", "x" * 200])
    golden.check("agent_80.txt", [*lines, "", *agent_lines(reporter, now_s=T0_S + 60, width=80)], width=80)
