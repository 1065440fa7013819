"""Settings that are kept for later versions are named, not silently ignored."""

from __future__ import annotations

from pathlib import Path

from tests.startup.spec.projects import agents, loaded, of


def test_a_fleet_that_asks_for_nothing_of_that_is_not_bothered(tmp_path: Path) -> None:
    assert not of(
        loaded(tmp_path, agents("A: {agent: 'm:C', hibernate: {depth: deep, after: 1s, wake_dependencies: true}}")),
        "unserved",
    )
