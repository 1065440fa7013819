from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from startup.plan.phase import Phase
from startup.plan.row import Stamps
from startup.view.svg import gantt, tick_s
from startup.view.timeline import document, timeline, timeline_lines
from tests.startup.view import golden
from tests.startup.view.fleets import T0_S, a_row, levelled


def stamps(*seconds: float | None) -> Stamps:
    names = ("wanted_s", "unblocked_s", "forked_s", "importing_s", "starting_s", "ready_s")
    return Stamps(**{name: None if at is None else T0_S + at for name, at in zip(names, seconds, strict=True)})


CHAIN = [
    a_row("m/A", stamps=stamps(0, 0.0, 0.1, 0.2, 0.3, 1.0)),
    a_row("m/B", stamps=stamps(0, 1.0, 1.1, 1.2, 1.3, 2.0), slowest_dependency="m/A"),
    a_row("m/C", stamps=stamps(0, 2.0, 2.1, 2.2, 2.3, 2.5), slowest_dependency="m/B"),
    a_row("m/D", stamps=stamps(0, 0.0, 0.1, None, None, 2.2)),
]


def test_the_slowest_path_leads_from_who_waited_for_nobody_to_the_last_that_became_ready() -> None:
    line = timeline(CHAIN)
    assert [str(bar.id) for bar in line.critical] == ["m/A", "m/B", "m/C"]
    assert [bar.level for bar in line.bars] == [0, 0, 1, 2]
    assert line.total_s == pytest.approx(2.5)
    assert line.critical[1].took_s == pytest.approx(1.0)


def test_missing_stamps_lengthen_the_step_before() -> None:
    (bar,) = [bar for bar in timeline(CHAIN).bars if bar.id.name == "D"]
    assert [(step, round(end, 3)) for step, _, end in bar.spans] == [("waiting", 0.0), ("fork", 2.2)]


def test_agents_that_never_became_ready_are_named_and_not_drawn() -> None:
    line = timeline([*CHAIN, a_row("m/E", Phase.FAILED)])
    assert [str(id) for id in line.unfinished] == ["m/E"]
    assert "not ready: m/E" in timeline_lines(line, width=80)


def test_stamps_that_close_a_circle_after_restarts_do_not_hang_it() -> None:
    looped = [replace(CHAIN[0], slowest_dependency="m/C"), *CHAIN[1:]]
    assert len(timeline(looped).critical) == 3


def test_an_empty_start_is_said() -> None:
    assert timeline_lines(timeline([]), width=80) == ["no agent has become ready yet"]
    ET.fromstring(gantt(timeline([]), title="nothing"))


@pytest.mark.parametrize("width", [80, 200])
def test_84_agents_are_drawn_in_characters(width: int) -> None:
    golden.check(f"timeline84_{width}.txt", timeline_lines(timeline(levelled(84)), width=width), width=width)


@pytest.mark.parametrize("agents", [4, 84, 1000])
def test_the_picture_is_well_formed_and_has_a_bar_for_every_agent(agents: int) -> None:
    line = timeline(levelled(agents, levels=min(9, agents)))
    root = ET.fromstring(gantt(line, title="Start of <fleet> & co"))
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}g")) == agents
    texts = [element.text or "" for element in root.iter(f"{space}text")]
    assert "Start of <fleet> & co" in texts
    assert {str(bar.id) for bar in line.critical} <= set(texts)
    height = float(root.attrib["height"])
    assert all(0 <= float(rect.attrib.get("y", 0)) <= height for rect in root.iter(f"{space}rect"))


@pytest.mark.parametrize(("total_s", "step_s"), [(0.755, 0.1), (1.0, 0.1), (1.01, 0.2), (42.0, 5.0), (0.0, 0.001)])
def test_the_axis_has_at_most_ten_round_marks(total_s: float, step_s: float) -> None:
    assert tick_s(total_s) == pytest.approx(step_s)


def test_the_document_tells_each_step_and_the_path() -> None:
    told = document("c", timeline(CHAIN))
    assert told["critical_path"] == ["m/A", "m/B", "m/C"]
    assert told["agents"][2]["after"] == "m/A"
    assert told["agents"][2]["steps"]["import"] == {"from_s": 1.2, "to_s": 1.3}
