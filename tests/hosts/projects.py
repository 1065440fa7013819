"""A small fleet over the two machines, driven by commands that are typed on one of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.hosts.machines import PATIENCE_S, SSH_PORT, Machine, Result
from tests.startup.cli.launched import AGENTS, REPOSITORY

NODE_PORT = 10001


def install(*machines: Machine, agents: Mapping[str, str], ssh: bool = True, **facts: Any) -> Path:
    """The same project on each of these machines: `agents` by name with their machines. The path of its file there."""
    document = {
        "version": 1,
        "cluster": "c",
        "project_root": ".",
        "security": "none",
        "machines": {
            machine.name: {
                "host": machine.address,
                "node_port": NODE_PORT,
                "workdir": str(machine.home / "fleet"),
                **({"ssh": {"port": SSH_PORT}} if ssh else {}),
            }
            for machine in machines
        },
        "port_ranges": {"core": "1024-65535"},
        "mesh": {"suspect": "300ms", "unreachable": "1s"},
        "defaults": {"class": "core", "shutdown": {"grace": "2s"}, "hibernate": {"depth": "never"}},
        "agent_groups": {
            "core": {
                name: {"agent": "fleet_agents:Plain", "machine": machine, "port": 20_000 + 2 * n, "health_check_port": 20_001 + 2 * n}
                for n, (name, machine) in enumerate(agents.items())
            }
        },
        **facts,
    }  # fmt: skip
    for machine in machines:
        folder = machine.home / "fleet"
        folder.mkdir()
        (folder / "fleet_agents.py").write_text(AGENTS)
        (folder / "startup_config.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        machine.environment["PYTHONPATH"] = str(REPOSITORY)
        machine.environment["COLUMNS"] = "200"
    return folder / "startup_config.yaml"


def typed(machine: Machine, *words: str) -> Result:
    """`agentkit WORDS` in the project's folder of that machine."""
    return machine.agentkit(*words, folder=machine.home / "fleet")


def agents(machine: Machine) -> dict[str, dict[str, Any]]:
    """What `status` there tells of every agent, by id."""
    told = typed(machine, "status", "--json").json
    return {f"{agent['machine']}/{agent['instance']}": agent for agent in told["agents"]}


def numbers(machine: Machine) -> dict[str, int]:
    """The revision that each machine acts on, as `status` there tells."""
    nodes = typed(machine, "status", "--json").json["nodes"]
    return {node["machine"]: node["revision"]["number"] for node in nodes}


def until(reached: Any) -> Any:
    """What `reached()` returns as soon as it is something; commands are typed again and again meanwhile."""
    ends_s = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < ends_s
    return found
