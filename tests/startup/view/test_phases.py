from __future__ import annotations

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.row import AgentRow, Stamps
from startup.view.phases import PhaseLines, aims
from tests.startup.plan.builders import agent, aid, revision

FLEET = revision(
    agent("A", group="core"),
    agent("B", group="core"),
    agent("Extra", group="core", required=False),
    agent("C", group="perf"),
    agent("D", group="late"),
    agent("Free", group="none"),
    phases=(("core",), ("perf",), ("late",)),
).fleet


def rows(**phases: Phase) -> dict[AgentId, AgentRow]:
    """All that is READY began at 100 s and was ready 0.31 s later."""
    return {
        aid(name): AgentRow(
            id=aid(name), phase=phase, reason="exit 1" if phase is Phase.FAILED else "",
            stamps=Stamps(unblocked_s=100.0, ready_s=100.31) if phase is Phase.READY else Stamps(),
        )
        for name, phase in phases.items()
    }  # fmt: skip


def lines() -> PhaseLines:
    return PhaseLines(aims(FLEET, FLEET.ids()), began_s=100.0)


def test_a_phase_is_told_once_when_everything_required_of_it_is_ready() -> None:
    said = lines()
    assert said.new(rows(A=Phase.READY, B=Phase.STARTING)) == []
    up = rows(A=Phase.READY, B=Phase.READY, Extra=Phase.FAILED)
    assert said.new(up) == ["phase 1/3 core: 2 of 3 agents ready in 310 ms"]
    assert said.new(up) == []


def test_hibernated_agents_confirm_a_phase_and_one_that_ran_before_says_so() -> None:
    up = rows(A=Phase.HIBERNATED, B=Phase.HIBERNATED, Extra=Phase.HIBERNATED)
    assert lines().new(up) == ["phase 1/3 core: 3 agents ready already"]


def test_what_failed_is_told_with_the_phases_that_do_not_start() -> None:
    failed = rows(A=Phase.READY, B=Phase.FAILED, Extra=Phase.READY, C=Phase.SKIPPED, D=Phase.SKIPPED)
    said = lines()
    assert said.last(failed) == ["phase 1/3 core: not confirmed, B failed: exit 1; phases 2-3 do not start before it"]
    first, second, third = said.to_wire(failed)
    assert (first["state"], first["missing"], first["agents"], first["ready"]) == ("failed", ["m/B"], 3, 2)
    assert (second["state"], third["state"]) == ("failed", "failed")


def test_at_the_end_of_a_wait_an_unfinished_phase_says_how_many_it_lacks() -> None:
    assert lines().last(rows(A=Phase.STARTING, B=Phase.READY)) == [
        "phase 1/3 core: not confirmed yet, 1 agent missing; phases 2-3 do not start before it"
    ]


def test_only_phases_that_are_waited_for_are_told() -> None:
    chosen = [aid("C"), aid("Free")]
    said = PhaseLines(aims(FLEET, chosen), began_s=100.0)
    assert said.last(rows(C=Phase.READY)) == ["phase 2/3 perf: 1 agent ready in 310 ms"]
    assert [phase["number"] for phase in said.to_wire({})] == [2]
