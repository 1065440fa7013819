"""A fleet over both machines: its project on the operator's, its file, and what came of commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.hosts.machines import SSH_PORT, Machine, Result
from tests.startup.cli.launched import AGENTS


class TwoHosts:
    """Fleet `two` with main_pc on `a` and pc2 on `b`; the operator sits at `a`."""

    def __init__(self, a: Machine, b: Machine) -> None:
        self.a, self.b = a, b
        self.here, self.there = a.folder / "project", b.folder / "project"
        self.here.mkdir(exist_ok=True)
        (self.here / "fleet_agents.py").write_text(AGENTS)

    def write(
        self, agents: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any] | None = None, **facts: Any
    ) -> None:
        """fleet.yaml. `machine`: keys of pc2 beside or instead of those that work; an `ssh` is merged."""
        theirs = {"host": self.b.address, "node_port": 10001, "workdir": str(self.there), **(machine or {})}
        ssh = {"user": "root", "port": SSH_PORT, **(theirs.get("ssh") or {})}
        ours = {
            "host": self.a.address,
            "node_port": 10001,
            "workdir": str(self.here),
            "ssh": {"user": "root", "port": SSH_PORT},
        }
        document = {
            "version": 1,
            "cluster": "two",
            "project_root": ".",
            "security": "none",
            "machines": {
                "main_pc": ours,
                "pc2": theirs | {"ssh": ssh} if "ssh" not in theirs or theirs["ssh"] else theirs,
            },
            "defaults": {
                "restart": {"delay": "10ms", "max_attempts": 1, "retry_failed_after": "0s"},
                "shutdown": {"grace": "2s"},
                "hibernate": {"depth": "never"},
            },
            "agent_groups": {"core": {name: {"agent": "fleet_agents:Plain", **keys} for name, keys in agents.items()}},
            **facts,
        }
        (self.here / "fleet.yaml").write_text(json.dumps(document, indent=1))  # JSON is YAML

    def agentkit(self, *words: str, at: Machine | None = None) -> Result:
        """As typed in the project's folder, on `a` unless said otherwise."""
        machine = at or self.a
        return machine.agentkit(*words, folder=self.here if machine is self.a else self.there)

    def up(self, *words: str) -> Any:
        """The document of an `up` that has to succeed."""
        result = self.agentkit("up", "fleet.yaml", "--json", *words)
        assert result.code == 0, result.err + result.out
        return result.json

    def copy(self) -> None:
        """The project as git would have brought it there."""
        self.there.mkdir(exist_ok=True)
        for path in self.here.glob("*.*"):
            (self.there / path.name).write_bytes(path.read_bytes())

    def end(self) -> None:
        """`down`, after which nothing of agentkit runs on either machine."""
        result = self.agentkit("down", "--cluster", "two")
        assert result.code == 0, result.err + result.out
        for machine in (self.a, self.b):
            assert processes(machine) == "", processes(machine)


def processes(machine: Machine) -> str:
    """Titles of nodes, zygotes and agents that run there, a line each; zombies are none."""
    lines = machine.run("ps", "-eo", "stat=,args=").out.splitlines()
    return "\n".join(line for line in lines if "agentkit: " in line and not line.startswith("Z"))


def program(path: Path, text: str) -> str:
    """An executable file; its path."""
    path.write_text(dedent(text).lstrip())
    path.chmod(0o755)
    return str(path)
