from __future__ import annotations

from dataclasses import replace

import pytest

from agentkit.errors import ConfigError
from startup.cli.selection import Selection, next_revision
from startup.plan.changes import changes
from startup.plan.desired import Desired
from startup.plan.revision import Revision
from startup.spec.fleet import AgentSpec, AgentTarget, Dependency, Fleet, MachineSpec
from startup.view.changes import change_lines
from tests.startup.view.fleets import an_id


def a_spec(name: str, *needs: str, group: str = "core", optional: tuple[str, ...] = (), **facts: object) -> AgentSpec:
    dependencies = [Dependency(name=other, agents=(an_id(f"m/{other}"),)) for other in needs]
    dependencies += [Dependency(name=other, agents=(an_id(f"m/{other}"),), required=False) for other in optional]
    target = AgentTarget(module="agents.member", cls="Member")
    port = 10_000 + sum(map(ord, name))
    whole = {
        "group": group,
        "klass": "core",
        "target": target,
        "port": port,
        "dependencies": tuple(dependencies),
        **facts,
    }
    return AgentSpec(id=an_id(f"m/{name}"), **whole)  # type: ignore[arg-type]


def a_fleet(*agents: AgentSpec) -> Fleet:
    return Fleet(
        cluster="c",
        project_root="/p",
        file="/p/f.yaml",
        machines=(MachineSpec(name=an_id("m/x").machine),),
        agents=agents,
    )


#: D <- B <- A, D <- C (C only likes A), E alone
FLEET = a_fleet(
    a_spec("D"), a_spec("B", "D"), a_spec("A", "B"), a_spec("C", "D", optional=("A",), group="more"), a_spec("E")
)


def names(ids: object) -> str:
    return "".join(sorted(str(id.name) for id in ids))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(), "ABCDE"),
        (Selection(agents=["A"]), "ABD"),
        (Selection(agents=["E", "B"]), "BDE"),
        (Selection(groups=["more"]), "CD"),
        (Selection(without=["B"]), "CDE"),
        (Selection(without=["D"]), "E"),
        (Selection(groups=["core"], without=["A"]), "BDE"),
    ],
)
def test_a_selection_brings_what_it_requires_and_leaves_out_what_requires_the_excepted(
    selection: Selection, chosen: str
) -> None:
    revision, wanted = next_revision(FLEET, selection, None)
    assert names(wanted) == chosen
    assert names(revision.stopped) == names(set(FLEET.ids()) - set(wanted))
    assert revision.fleet == FLEET


def test_naming_an_agent_and_excepting_what_it_requires_is_refused() -> None:
    with pytest.raises(ConfigError, match="m/A can't start without it"):
        next_revision(FLEET, Selection(agents=["A"], without=["D"]), None)


@pytest.mark.parametrize(
    "selection", [Selection(agents=["Nobody"]), Selection(groups=["nothing"]), Selection(without=["Nobody"])]
)
def test_unknown_names_are_refused(selection: Selection) -> None:
    with pytest.raises(ConfigError):
        next_revision(FLEET, selection, None)


def running(fleet: Fleet, *stopped: str, down: bool = False) -> Revision:
    return Revision(
        number=3,
        author="a",
        time_s=0,
        fleet=fleet,
        stopped=frozenset(an_id(f"m/{name}") for name in stopped),
        down=down,
    )


def test_on_a_running_cluster_a_selection_only_adds() -> None:
    old = a_fleet(a_spec("D"), a_spec("B", "D"), a_spec("E"))
    changed = a_fleet(*(replace(spec, watchdog_s=1.0) for spec in FLEET.agents))
    revision, wanted = next_revision(changed, Selection(agents=["B"]), running(old, "B"))
    by_name = {spec.id.name: spec for spec in revision.fleet.agents}
    assert names(wanted) == "BD"
    assert (by_name["D"].watchdog_s, by_name["B"].watchdog_s, by_name["E"].watchdog_s) == (1.0, 1.0, 30.0)
    assert names(revision.stopped) == "AC", "E goes on, B is started, what was never started is not"


def test_the_whole_file_starts_what_was_stopped_and_drops_what_is_gone() -> None:
    old = a_fleet(a_spec("D"), a_spec("X"))
    revision, wanted = next_revision(FLEET, Selection(), running(old, "D"))
    assert (names(wanted), revision.stopped, revision.fleet) == ("ABCDE", frozenset(), FLEET)


def test_after_a_down_nothing_of_the_old_revision_runs_on() -> None:
    revision, _ = next_revision(FLEET, Selection(agents=["D"]), running(FLEET, down=True))
    assert not revision.down
    assert names(revision.stopped) == "ABCE"


def test_disabled_agents_are_not_waited_for() -> None:
    _, wanted = next_revision(a_fleet(a_spec("A"), a_spec("B", enabled=False)), Selection(), None)
    assert names(wanted) == "A"


def test_a_difference_names_each_agent_once() -> None:
    old = a_fleet(a_spec("Same"), a_spec("Changed"), a_spec("Stopped"), a_spec("Failed"), a_spec("Gone"))
    new = a_fleet(a_spec("Same"), a_spec("Changed", watchdog_s=1.0), a_spec("Stopped"), a_spec("Failed"), a_spec("New"))
    current = running(old, "Stopped")
    found = changes(current, next_revision(new, Selection(), current)[0], failed={an_id("m/Failed")})
    assert list(change_lines(found, width=80)) == [
        "  + m/New  added",
        "  - m/Gone  removed, drained first",
        "  ~ m/Changed  replaced",
        "      watchdog  30s → 1s",
        "  + m/Stopped  started: did not run",
        "  + m/Failed  tried again: had failed",
        "  1 agent unchanged",
    ]


def test_an_agent_that_a_selection_adds_without_starting_it_is_told_so() -> None:
    current = running(a_fleet(a_spec("D")))
    revision, _ = next_revision(FLEET, Selection(agents=["B"]), current)
    assert list(change_lines(changes(current, revision), width=80)) == [
        "  + m/B  added",
        "  + 3 agents added, not started: m/A, m/C, m/E",
        "  1 agent unchanged",
    ]


@pytest.mark.parametrize(
    ("selection", "command"),
    [
        (Selection(agents=["D"]), "up D"),
        (Selection(groups=["more"], without=["C"]), "up --group more --except C"),
        (Selection(until="core"), "up --until core"),
    ],
)
def test_what_a_command_left_out_is_not_called_stopped(selection: Selection, command: str) -> None:
    fleet = replace(FLEET, phases=(("core",), ("more",)))
    revision, _ = next_revision(fleet, selection, None)
    assert set(revision.unstarted) == revision.stopped
    assert set(revision.unstarted.values()) == {command}
    assert Desired(revision).why_not(an_id("m/C")) == f"not started: {command}"
    assert Revision.from_wire(revision.to_wire()) == revision


def test_a_later_command_leaves_the_reasons_of_what_it_does_not_start() -> None:
    fleet = replace(a_phased_fleet(), agents=(*a_phased_fleet().agents, a_spec("X", group="free")))
    first, _ = next_revision(fleet, Selection(until="core"), None)
    stopped = first.stopping([an_id("m/Free"), an_id("m/C")])
    second, _ = next_revision(fleet, Selection(agents=["B"]), stopped)
    why = {str(id.name): Desired(second).why_not(id) for id in sorted(second.stopped)}
    assert why == {
        "C": "stopped by operator", "Free": "stopped by operator", "NeedsC": "not started: up --until core"
    }  # fmt: skip
    assert second.starting([an_id("m/NeedsC")]).unstarted == {}


def a_phased_fleet() -> Fleet:
    agents = (
        a_spec("A"),
        a_spec("B", "A", group="perf"),
        a_spec("C", group="late"),
        a_spec("Free", group="free"),
        a_spec("NeedsC", "C", group="free"),
    )
    return replace(a_fleet(*agents), phases=(("core",), ("perf",), ("late",)))


@pytest.mark.parametrize(
    ("until", "expected"), [("1", "A Free"), ("core", "A Free"), ("perf", "A B Free"), ("3", "A B C Free NeedsC")]
)
def test_until_a_phase_starts_it_and_those_before_and_what_is_in_no_phase(until: str, expected: str) -> None:
    fleet = a_phased_fleet()
    revision, wanted = next_revision(fleet, Selection(until=until), None)
    assert [str(id.name) for id in wanted] == expected.split()
    assert revision.stopped == set(fleet.ids()) - set(wanted)


def test_until_leaves_what_runs_of_later_phases_and_the_next_up_goes_on() -> None:
    fleet = a_phased_fleet()
    first, _ = next_revision(fleet, Selection(until="late"), None)
    second, _ = next_revision(fleet, Selection(until="core"), first)
    assert second.stopped == frozenset()
    began, _ = next_revision(fleet, Selection(until="core"), None)
    whole, _ = next_revision(fleet, Selection(), began)
    assert whole.stopped == frozenset()


@pytest.mark.parametrize("until", ["0", "4", "cor", "free"])
def test_until_a_phase_that_does_not_exist_is_refused_with_those_that_do(until: str) -> None:
    with pytest.raises(ConfigError, match=r"1 \(core\), 2 \(perf\), 3 \(late\)"):
        Selection(until=until).of(a_phased_fleet())
