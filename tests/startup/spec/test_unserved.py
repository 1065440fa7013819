"""Settings that are kept for later versions are named, not silently ignored."""

from __future__ import annotations

from pathlib import Path

from tests.startup.spec.projects import agents, loaded, of


def test_sleep_is_named_once_for_all_agents(tmp_path: Path) -> None:
    lines = "\n".join(f"A{i}: {{agent: 'm:C', hibernate: {{depth: deep}}}}" for i in range(3))
    found = of(loaded(tmp_path, agents(lines)), "unserved")
    assert [(problem.severity, problem.at.rpartition(".")[2]) for problem in found] == [
        ("warning", "hibernate"),
    ]
    assert all("(and 2 more)" in problem.found for problem in found)


def test_a_fleet_that_asks_for_nothing_of_that_is_not_bothered(tmp_path: Path) -> None:
    assert not of(loaded(tmp_path, agents("A: {agent: 'm:C', hibernate: {depth: light, after: 1s}}")), "unserved")
