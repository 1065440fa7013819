"""Settings that are kept for later versions are named, not silently ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.startup.spec.projects import agents, loaded, of, one


@pytest.mark.parametrize(
    ("settings", "at", "severity"),
    [("security: {keys: /keys}\n", "security", "warning")],
)
def test_a_setting_of_the_fleet_that_has_no_effect_is_named(
    tmp_path: Path, settings: str, at: str, severity: str
) -> None:
    problem = one(loaded(tmp_path, settings + agents("A: {agent: 'm:C', port: 10100}")), "unserved")
    assert (problem.at, problem.severity) == (at, severity)


def test_limits_and_sleep_are_named_once_for_all_agents(tmp_path: Path) -> None:
    lines = "\n".join(
        f"A{i}: {{agent: 'm:C', resources: {{limits: {{memory: 1Mi}}}}, hibernate: {{depth: deep}}}}" for i in range(3)
    )
    found = of(loaded(tmp_path, agents(lines)), "unserved")
    assert [(problem.severity, problem.at.rpartition(".")[2]) for problem in found] == [
        ("warning", "resources"),
        ("warning", "hibernate"),
    ]
    assert all("(and 2 more)" in problem.found for problem in found)


def test_a_fleet_that_asks_for_nothing_of_that_is_not_bothered(tmp_path: Path) -> None:
    assert not of(loaded(tmp_path, agents("A: {agent: 'm:C', hibernate: {depth: never}}")), "unserved")
