"""A node on each of two machines of namespaces, proposed to and looked at from outside, called from inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from startup.node.launch import boot_command
from startup.node.options import BootOptions
from startup.node.paths import Places
from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from startup.spec.fleet import AgentSpec, AgentTarget, Fleet, MachineSpec, MeshSpec
from tests.hosts.machines import Link, Machine
from tests.startup.cli.launched import REPOSITORY
from tests.startup.node.cluster import PATIENCE_S, Nodes
from tests.startup.plan.builders import agent

NODE_PORT = 10001
#: The real times, ten times shorter.
SHORT = MeshSpec(suspect_s=0.3, unreachable_s=1.0)
REAL = MeshSpec()

#: Answers calls with its pid, or late.
AGENT = """
import asyncio, os
from agentkit import BaseAgent, rpc

class Answers(BaseAgent):
    @rpc(idempotent=True)
    async def pid(self) -> int:
        return os.getpid()

    @rpc(timeout="120s")
    async def wait(self, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return os.getpid()
"""

#: Calls what each line of its input names, [target, method, arguments, timeout], and prints what came of it.
ASKS = """
import asyncio, json, sys, time
from agentkit import CallError, Client

async def main():
    loop = asyncio.get_running_loop()
    async with Client(node=sys.argv[1]) as client:
        async def one(number, target, method, arguments, timeout):
            began = time.monotonic()
            try:
                told = {"result": await client.call(target, method, arguments, timeout=timeout)}
            except CallError as error:
                told = {"code": error.code, "message": error.message}
            print(json.dumps({"number": number, "took_s": time.monotonic() - began, **told}), flush=True)
        tasks = set()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            task = loop.create_task(one(*json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

asyncio.run(main())
"""


@dataclass
class HostNodes(Nodes):
    """`Nodes` with a machine for each. `rows` and `wait` take the machine whose view is meant."""

    hosts: Mapping[str, Machine] = field(default_factory=dict)
    mesh: MeshSpec = SHORT

    def places(self, machine: str = "") -> Places:
        machine = machine or self.machines[0]
        folder = self.hosts[machine].folder
        return Places(
            self.cluster, machine, folder / "r" / self.cluster / machine, folder / "s" / self.cluster / machine
        )

    def boot(self, *machines: str) -> None:
        for name in machines or self.machines:
            host = self.hosts[name]
            options = BootOptions(
                cluster=self.cluster,
                machines=(name,),
                run_root=str(host.folder / "r"),
                state_root=str(host.folder / "s"),
                host=host.address,
                node_port=NODE_PORT,
            )
            done = host.run(sys.executable, *boot_command(options)[1:], PYTHONPATH=str(REPOSITORY), PYTHONSAFEPATH="1")
            assert done.code == 0, done.out + done.err
        for name in machines or self.machines:
            self.ask(name)

    def fleet(self, *agents: AgentSpec, **keys: Any) -> Fleet:
        names = keys.pop("machines", self.machines)
        machines = tuple(
            MachineSpec(name=name, host=self.hosts[name].address, node_port=NODE_PORT)  # type: ignore[arg-type]
            for name in names
        )
        return Fleet(
            cluster=self.cluster,
            project_root=str(self.folder),
            file=str(self.folder / "fleet.yaml"),
            machines=machines,
            agents=agents,
            **{"security": "none", "mesh": self.mesh, **keys},  # type: ignore[arg-type]
        )

    def agent(self, text: str, *needs: str, **keys: Any) -> AgentSpec:
        """One that answers calls; its port is the same on every machine."""
        script = self.folder / "answers.py"
        if not script.exists():
            script.write_text(AGENT)
        facts = {"port": 20000, "target": AgentTarget(script=str(script), cls="Answers"), "watchdog_s": 30.0}
        return agent(text, *needs, **(facts | keys))

    # -- what runs

    def pid_outside(self, machine: str, title: str) -> list[int]:
        """Processes of a machine whose title begins so, by the numbers that they have here."""
        inside = os.readlink(f"/proc/{self.hosts[machine].pid}/ns/pid")
        found = []
        for pid, shown in self.pids().items():
            if shown.startswith(title):
                try:
                    if os.readlink(f"/proc/{pid}/ns/pid") == inside:
                        found.append(pid)
                except OSError:
                    continue
        return found

    def kill(self, machine: str, *kinds: str) -> None:
        """SIGKILL to its node, zygote, or both at once."""
        pids = [pid for kind in kinds for pid in self.pid_outside(machine, f"agentkit: {kind} ")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def lives(self, name: str) -> dict[str, list[int]]:
        """Machine -> processes of the agents called `name` there."""
        return {
            machine: self.pid_outside(machine, f"agentkit: agent {self.cluster}/{machine}/{name}#")
            for machine in self.hosts
        }

    # -- views

    def peer_state(self, machine: str, other: str) -> str:
        return str(self.ask(machine, "status")["peers"].get(other))

    def until(self, reached: Callable[[], object], within_s: float = PATIENCE_S) -> float:
        """Seconds until it was so; looked at often, because that is told to nobody."""
        began_s = time.monotonic()
        while not reached():
            assert time.monotonic() - began_s < within_s, "\n".join(
                self.node_log(name)[-4000:] for name in self.machines
            )
            time.sleep(0.02)
        return time.monotonic() - began_s

    def until_states(self, state: str, *, within_s: float = PATIENCE_S) -> None:
        """Until each machine sees the other so."""
        pairs = [(one, other) for one in self.machines for other in self.machines if one != other]
        self.until(lambda: all(self.peer_state(one, other) == state for one, other in pairs), within_s)

    def agree(self) -> bool:
        """Whether every machine shows the same of every agent, and nothing as unreachable."""
        views = [{id: told(row) for id, row in self.rows(machine).items()} for machine in self.machines]
        return all(view == views[0] for view in views) and not any("unreachable" in view for view in views[0].values())

    def asker(self, machine: str) -> Asker:
        host = self.hosts[machine]
        return Asker(host, str(self.places(machine).control))


class Asker:
    """A client on a machine, of the node there."""

    def __init__(self, host: Machine, control: str) -> None:
        self._process = subprocess.Popen(
            host.command(sys.executable, "-c", ASKS, control, PYTHONPATH=str(REPOSITORY)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._number = 0
        self._told: dict[int, dict[str, Any]] = {}

    def begin(self, target: str, method: str, timeout: float, **arguments: Any) -> int:
        assert self._process.stdin is not None
        self._number += 1
        self._process.stdin.write(json.dumps([self._number, target, method, arguments, timeout]) + "\n")
        self._process.stdin.flush()
        return self._number

    def outcome(self, number: int) -> dict[str, Any]:
        """`result` or `code`, and `took_s`."""
        assert self._process.stdout is not None
        while number not in self._told:
            line = self._process.stdout.readline()
            assert line, "the asker ended"
            told = json.loads(line)
            self._told[told["number"]] = told
        return self._told.pop(number)

    def call(self, target: str, method: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        return self.outcome(self.begin(target, method, timeout, **arguments))

    def close(self) -> None:
        with self._process as process:
            process.kill()


def told(row: AgentRow) -> tuple[Any, ...]:
    """What two views of a row must agree about."""
    return row.phase.value, row.health.value, row.pid, row.incarnation, row.version


@contextmanager
def two_nodes(a: Machine, b: Machine, link: Link, mesh: MeshSpec = SHORT) -> Iterator[HostNodes]:
    """Booted; whatever runs ends with the machines."""
    nodes = HostNodes(a.folder.parent, "c", (a.name, b.name), hosts={a.name: a, b.name: b}, mesh=mesh)
    nodes.boot()
    yield nodes


READY = Phase.READY
