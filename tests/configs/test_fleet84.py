from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FORBIDDEN_PORTS = {80, 443, 3000, 5000, 8000, 8080}
FIRST_EPHEMERAL_PORT = 32768  # where Linux begins to take the ports of outgoing connections from


@pytest.fixture(scope="module")
def agents() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CONFIGS / "fleet84.yaml").read_text())["agent_groups"]
    return [
        {"name": name, "group": group, **entry} for group, members in groups.items() for name, entry in members.items()
    ]


def test_the_file_is_what_the_script_makes() -> None:
    script = runpy.run_path(str(CONFIGS / "make_fleet84.py"))
    assert (CONFIGS / "fleet84.yaml").read_text() == script["make"]()


def test_84_members_of_which_77_are_the_real_fleets(agents: list[dict[str, Any]]) -> None:
    facts = json.loads((CONFIGS / "fleet84_facts.json").read_text())["agents"]
    assert len(agents) == 84
    assert len(facts) == 77
    assert {agent["agent"] for agent in agents} == {"agents.member:Member"}
    ours = {(agent["machine"], agent["name"]): agent for agent in agents}
    for fact in facts:
        agent = ours[fact["machine"], fact["name"]]
        assert (agent["group"], agent["port"], agent["health_check_port"], agent.get("required", True)) == (
            fact["group"],
            fact["port"],
            fact["health_port"],
            fact["required"],
        )
        assert agent.get("dependencies", []) == fact["deps"]


def test_every_member_calls_exactly_what_it_depends_on(agents: list[dict[str, Any]]) -> None:
    for agent in agents:
        assert agent.get("config", {}).get("calls", []) == agent.get("dependencies", []), agent["name"]


def test_no_port_is_used_twice_forbidden_or_ephemeral(agents: list[dict[str, Any]]) -> None:
    ports = Counter(port for agent in agents for port in (agent["port"], agent["health_check_port"]))
    assert [port for port, uses in ports.items() if uses > 1] == []
    assert FORBIDDEN_PORTS.isdisjoint(ports)
    assert max(ports) < FIRST_EPHEMERAL_PORT


def test_the_machines_need_each_other_and_the_longest_chain_is_eleven_levels(agents: list[dict[str, Any]]) -> None:
    by_id = {f"{agent['machine']}/{agent['name']}": agent for agent in agents}

    def resolve(agent: dict[str, Any], dependency: str | dict[str, Any]) -> str:
        name = dependency if isinstance(dependency, str) else dependency["name"]
        here = f"{agent['machine']}/{name}"
        return here if here in by_id else next(id for id in by_id if id == name or id.endswith(f"/{name}"))

    def level(id: str) -> int:
        agent = by_id[id]
        return 1 + max((level(resolve(agent, dep)) for dep in agent.get("dependencies", [])), default=0)

    crossings = {
        (agent["machine"], resolve(agent, dep).partition("/")[0])
        for agent in agents
        for dep in agent.get("dependencies", [])
    }
    assert {("mainpc", "pc2"), ("pc2", "mainpc")} <= crossings
    assert max(map(level, by_id)) == 11


def test_some_agents_and_some_edges_are_optional(agents: list[dict[str, Any]]) -> None:
    optional_edges = [dep for agent in agents for dep in agent.get("dependencies", []) if isinstance(dep, dict)]
    assert len([agent for agent in agents if not agent.get("required", True)]) == 5
    assert {dep["name"] for dep in optional_edges} == {"FleetAuditor", "BackupKeeper"}
