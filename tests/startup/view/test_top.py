from __future__ import annotations

from typing import Any

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.row import AgentRow, Stamps
from startup.view.top import QUIET_AFTER_S, Picture, document, next_picture, top_lines
from tests.startup.plan.builders import aid


def row(name: str, **facts: Any) -> AgentRow:
    return AgentRow(id=aid(name), phase=Phase.READY, pid=7, group="g", stamps=Stamps(forked_s=1000.0), **facts)


def usage(at_s: float, **cpu_s: float) -> dict[str, Any]:
    return {
        "at_s": at_s, "load": [0.5, 0.25, 0.1], "cores": 2, "memory_mb": 8192.0, "memory_free_mb": 6144.0,
        "node": {"pid": 1, "cpu_s": at_s * 0.01, "memory_mb": 15.0}, "zygote": {"pid": 2, "cpu_s": 1.0, "memory_mb": 30.0},
        "agents": {f"m/{name}": {"pid": 7, "cpu_s": spent} for name, spent in cpu_s.items()},
    }  # fmt: skip


def two_looks() -> Picture:
    first = next_picture(None, {"m": usage(10.0, A=1.0, B=2.0)}, [row("A", requests=100), row("B")], 50.0)
    told = usage(12.0, A=1.5, B=2.02)
    told["agents"]["m/B"]["memory_mb"] = 33.0
    return next_picture(first, {"m": told}, [row("A", requests=150, errors=4), row("B")], 52.0)


def names(picture: Picture, by: str) -> list[str]:
    return [agent["name"] for agent in document("c", picture, by)["agents"]]


def test_shares_and_rates_come_from_two_looks() -> None:
    first, second = document("c", two_looks(), "cpu")["agents"]
    assert (first["name"], first["cpu_percent"], first["requests_per_s"], first["errors_per_s"]) == (
        "A",
        25.0,
        25.0,
        2.0,
    )
    assert (second["cpu_percent"], second["memory_mb"]) == (1.0, 33.0)
    (machine,) = document("c", two_looks(), "cpu")["machines"]
    assert (machine["node"]["cpu"], machine["zygote"]["cpu"], machine["unreachable"]) == (1.0, 0.0, False)


def test_one_look_knows_no_shares_and_another_process_begins_anew() -> None:
    first = next_picture(None, {"m": usage(10.0, A=1.0)}, [row("A")], 50.0)
    assert first.lines[0].cpu is None
    told = usage(12.0, A=0.1)
    told["agents"]["m/A"]["pid"] = 8
    assert next_picture(first, {"m": told}, [row("A")], 52.0).lines[0].cpu is None


def test_memory_stays_as_it_was_measured_last_and_goes_with_its_process() -> None:
    second = two_looks()
    third = next_picture(second, {"m": usage(14.0, B=2.0)}, [row("A"), row("B")], 54.0)
    assert {str(line.row.id.name): line.memory_mb for line in third.lines} == {"A": None, "B": 33.0}
    fourth = next_picture(third, {"m": usage(16.0)}, [row("A"), row("B")], 56.0)
    assert [line.memory_mb for line in fourth.lines] == [None, None]


def test_counts_that_no_longer_grow_mean_no_requests_after_a_while() -> None:
    second = two_looks()
    rows = [row("A", requests=150, errors=4), row("B")]
    soon = next_picture(second, {}, rows, 52.0 + QUIET_AFTER_S - 1)
    later = next_picture(soon, {}, rows, 52.0 + QUIET_AFTER_S + 1)
    assert (soon.lines[0].requests_per_s, later.lines[0].requests_per_s) == (25.0, 0.0)
    grown = next_picture(later, {}, [row("A", requests=450, errors=4), row("B")], 82.0)
    assert grown.lines[0].requests_per_s == 10.0  # over all the time in which it grew


def test_each_order_has_its_greatest_first() -> None:
    picture = two_looks()
    assert (names(picture, "cpu"), names(picture, "memory"), names(picture, "requests"), names(picture, "errors")) == (
        ["A", "B"], ["B", "A"], ["A", "B"], ["A", "B"],
    )  # fmt: skip
    assert names(picture, "name") == ["A", "B"]


def test_lines_fit_80_and_200_columns_and_say_what_a_machine_does() -> None:
    for width in (80, 200):
        lines = top_lines("c", two_looks(), by="cpu", now_s=1100.0, width=width, keys=True)
        assert max(map(len, lines)) <= width
        assert lines[0] == "cluster c: 2 agents, 26% of a core, 25.0 requests/s; by cpu"
        assert lines[1].startswith("m: load 0.50 0.25 0.10 on 2 cores, memory 2.0 of 8.0 GB")
        assert [line.split()[0] for line in lines[-2:]] == ["A", "B"]
    assert "node 1.0% 15 MB, zygote 0.0% 30 MB" in lines[1]
    assert lines[-2].split()[:6] == ["A", "ready", "25.0", "-", "25.0", "2.0"]


def test_a_low_terminal_says_how_many_it_hides_and_scrolls() -> None:
    rows = [row(f"A{number}") for number in range(9)]
    picture = next_picture(None, {"m": usage(1.0), "n": None}, rows, 1.0)
    lines = top_lines("c", picture, by="name", now_s=1100.0, width=80, height=8)
    assert len(lines) == 8
    assert lines[2] == "n: does not answer"
    assert [line.split()[0] for line in lines[4:]] == ["A0", "A1", "A2", "and"]
    assert lines[-1] == "and 6 agents more"
    scrolled = top_lines("c", picture, by="name", now_s=1100.0, width=80, height=8, skipped=6)
    assert [line.split()[0] for line in scrolled[4:]] == ["A6", "A7", "A8"]


def test_an_id_is_told_in_full() -> None:
    (found,) = document("c", next_picture(None, {}, [AgentRow(id=AgentId.parse("m/A#2"))], 0.0), "cpu")["agents"]
    assert (found["instance"], found["machine"], found["cpu_percent"]) == ("A#2", "m", None)
