"""The fleet files that ship are clean, and mean what they say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from startup.spec.load import load

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ENVIRON = {"PATH": os.environ["PATH"]}  # MAIN_PC_IP and PC2_IP of whoever runs the tests do not count


@pytest.mark.process
@pytest.mark.parametrize(("file", "agents"), [("startup_config.yaml", 5), ("fleet84.yaml", 84)])
def test_a_shipped_fleet_has_no_problem_at_all(file: str, agents: int) -> None:
    loaded = load(CONFIGS / file, environ=ENVIRON)  # imports every module in throw-away children
    assert loaded.problems == ()
    assert loaded.fleet
    assert len(loaded.fleet.agents) == agents
    assert {machine.host for machine in loaded.fleet.machines} == {"127.0.0.1"}


def test_the_default_fleet_spans_two_machines_with_a_monitor_on_each() -> None:
    fleet = load(CONFIGS / "startup_config.yaml", environ=ENVIRON, inspect=False).fleet
    assert fleet
    assert [str(spec.id) for spec in fleet.agents] == [
        "main_pc/TaskManager",
        "pc2/Analytics",
        "main_pc/SystemMonitor",
        "pc2/SystemMonitor",
        "main_pc/Reporter",
    ]
    reporter = fleet.agents[-1]
    assert [(str(dep.agents[0]), dep.required) for dep in reporter.dependencies] == [
        ("main_pc/TaskManager", True),
        ("pc2/Analytics", True),
        ("main_pc/SystemMonitor", False),
        ("pc2/SystemMonitor", False),
    ]


def test_bare_names_in_the_large_fleet_mean_the_agent_on_the_same_machine_first() -> None:
    fleet = load(CONFIGS / "fleet84.yaml", environ=ENVIRON, inspect=False).fleet
    assert fleet
    edges = {str(spec.id): [str(id) for dep in spec.dependencies for id in dep.agents] for spec in fleet.agents}
    assert edges["pc2/ResourceManager"] == ["pc2/ObservabilityHub"]
    assert edges["pc2/FleetAuditor"][:2] == ["pc2/ObservabilityHub", "mainpc/ObservabilityHub"]
    assert edges["mainpc/ConversationRecorder"] == ["pc2/SpeechBridge", "mainpc/KnowledgeBase"]
