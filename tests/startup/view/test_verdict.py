from __future__ import annotations

from collections.abc import Iterable

import pytest

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from startup.view.verdict import LOST_AFTER_S, OPTIONAL_GRACE_S, STALLED_AFTER_S, judge
from tests.startup.view.fleets import a_row, an_id


def by_id(rows: Iterable[AgentRow]) -> dict[AgentId, AgentRow]:
    return {row.id: row for row in rows}


A, B, C = an_id("m/A"), an_id("m/B"), an_id("m/C")


@pytest.mark.parametrize("phase", [Phase.READY, Phase.HIBERNATED, Phase.COMPLETED])
def test_ready_hibernated_and_completed_agents_make_a_fleet_ready(phase: Phase) -> None:
    assert judge(by_id([a_row("m/A", phase)]), [A]).state == "ready"


@pytest.mark.parametrize(
    "phase", [Phase.PENDING, Phase.BACKOFF, Phase.FORKED, Phase.STARTING, Phase.STOPPING, Phase.DRAINING]
)
def test_whoever_moves_keeps_it_going_however_long_it_takes(phase: Phase) -> None:
    verdict = judge(by_id([a_row("m/A", phase), a_row("m/B", Phase.FAILED)]), [A, B], quiet_s=1000)
    assert verdict.state == "going"


def test_an_agent_that_no_node_has_told_of_yet_keeps_it_going() -> None:
    assert judge({}, [A], quiet_s=1000).state == "going"


def test_a_failed_required_agent_decides_once_nothing_moves_any_more() -> None:
    rows = by_id([a_row("m/A"), a_row("m/B", Phase.FAILED), a_row("m/C", Phase.SKIPPED)])
    assert judge(rows, [A, B, C]).state == "going", "it may be about to be tried again"
    verdict = judge(rows, [A, B, C], quiet_s=LOST_AFTER_S)
    assert (verdict.state, verdict.up, verdict.hopeless) == ("stuck", (A,), (B, C))


def test_a_failed_optional_agent_does_not_keep_the_fleet_from_being_ready() -> None:
    assert judge(by_id([a_row("m/A"), a_row("m/B", Phase.FAILED)]), [A, B], optional=[B]).state == "ready"


def test_optional_agents_on_their_way_get_a_short_grace() -> None:
    rows = by_id([a_row("m/A"), a_row("m/B", Phase.STARTING)])
    assert judge(rows, [A, B], optional=[B], required_up_s=0.1).state == "going"
    assert judge(rows, [A, B], optional=[B], required_up_s=OPTIONAL_GRACE_S).state == "ready"


def test_only_waiting_agents_and_long_silence_mean_that_nothing_can_progress() -> None:
    rows = by_id([a_row("m/A", Phase.WAITING, waiting_for=("Redis",)), a_row("m/B")])
    assert judge(rows, [A, B], quiet_s=STALLED_AFTER_S - 0.1).state == "going"
    assert judge(rows, [A, B], quiet_s=STALLED_AFTER_S).state == "stuck"


def test_agents_that_have_to_go_are_waited_for() -> None:
    rows = by_id([a_row("m/A"), a_row("m/B", Phase.STOPPING)])
    assert judge(rows, [A], unwanted=[B]).leaving == (B,)
    assert judge(rows, [A], unwanted=[B]).state == "going"
    assert judge(by_id([a_row("m/A"), a_row("m/B", Phase.STOPPED)]), [A], unwanted=[B]).state == "ready"


def test_an_empty_fleet_is_ready() -> None:
    assert judge({}, []).state == "ready"
