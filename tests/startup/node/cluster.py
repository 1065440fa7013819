"""Real nodes in a temporary folder, as tests of the daemon drive them: boot, propose, wait for rows, end without leftovers."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentkit.errors import NoNode
from startup.control import NodeConnection
from startup.errors import NodeLost
from startup.node import procinfo
from startup.node.launch import boot_command, boot_environment
from startup.node.options import BootOptions
from startup.node.paths import Places
from startup.plan.phase import ALIVE, Phase
from startup.plan.revision import Revision
from startup.plan.row import AgentRow
from startup.spec.fleet import AgentSpec, Fleet, MachineSpec, ProgramTarget
from tests.startup.plan.builders import agent, aid

#: No test waits longer than this for something that should happen, in seconds.
PATIENCE_S = 40.0

#: A program that speaks sd_notify as agents do, in the standard library: forked, ready and gone in milliseconds.
#: What it does beside is its environment's: SAY (a message more), THEN (python to run after READY), FIRST (before it).
PROGRAM = """
import os, signal, socket, sys, time
tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(text):
    tell.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
exec(os.environ.get("FIRST", ""))
say("READY=1" + os.environ.get("SAY", ""))
exec(os.environ.get("THEN", ""))
while not stop:
    signal.pause()
"""


@dataclass
class Nodes:
    """The nodes of one cluster. `rows` and `wait` see it through the first machine's node."""

    folder: Path
    cluster: str
    machines: tuple[str, ...]
    number: int = 0
    connections: dict[str, NodeConnection] = field(default_factory=dict)
    agents: tuple[AgentSpec, ...] = ()

    # -- nodes

    def places(self, machine: str = "") -> Places:
        machine = machine or self.machines[0]
        return Places(
            self.cluster,
            machine,
            self.folder / "r" / self.cluster / machine,
            self.folder / "s" / self.cluster / machine,
        )

    def boot(self, *machines: str) -> None:
        """Start nodes (all by default) and wait until they answer."""
        machines = machines or self.machines
        options = BootOptions(
            cluster=self.cluster,
            machines=machines,
            run_root=str(self.folder / "r"),
            state_root=str(self.folder / "s"),
        )
        command = [sys.executable, *boot_command(options)[1:]]
        done = subprocess.run(command, env=boot_environment(), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        for machine in machines:
            self.ask(machine)

    def connect(self, machine: str = "") -> NodeConnection:
        """A new conversation with a node that may just be starting."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return NodeConnection.connect(self.places(machine).control)
            except NoNode:
                if time.monotonic() > deadline_s:
                    raise AssertionError(f"no node: {self.node_log(machine)}") from None
            time.sleep(0.01)

    def ask(self, machine: str = "", operation: str = "hello", **arguments: Any) -> Any:
        with self.connect(machine) as connection:
            return connection.ask(operation, **arguments)

    def node_pid(self, machine: str = "") -> int:
        return int(self.ask(machine)["pid"])

    def zygote_pid(self, machine: str = "") -> int:
        return int(self.ask(machine, "status")["node"]["zygote_pid"])

    def node_log(self, machine: str = "") -> str:
        with suppress(OSError):
            return (self.places(machine).logs / "node.log").read_text()
        return "(no log)"

    def log(self, text: str) -> str:
        id = aid(text)
        return self.places(id.machine).log(id.instance).read_text()

    # -- what they shall do

    def fleet(self, *agents: AgentSpec, **keys: Any) -> Fleet:
        return Fleet(
            cluster=self.cluster,
            project_root=str(self.folder),
            file=str(self.folder / "fleet.yaml"),
            machines=tuple(MachineSpec(name=machine) for machine in self.machines),  # type: ignore[arg-type]
            agents=agents,
            **keys,
        )

    def up(
        self,
        *agents: AgentSpec,
        stopped: tuple[str, ...] = (),
        down: bool = False,
        proposed_to: tuple[str, ...] = (),
        force_move: bool = False,
        **keys: Any,
    ) -> None:
        """A new revision for every node (or only for those of `proposed_to`), in name order."""
        self.agents = agents or self.agents
        self.number += 1
        wanted = Revision(
            number=self.number,
            author="test@here",
            time_s=time.time(),
            fleet=self.fleet(*self.agents, **keys),
            stopped=frozenset(map(aid, stopped)),
            down=down,
        )
        for machine in sorted(proposed_to or self.machines):
            asked = {"expected": self.number - 1, "revision": wanted.to_wire(), "force_move": force_move}
            self.ask(machine, "propose", **asked)

    def clear(self) -> None:
        """An empty fleet: whatever a test had started ends, and its name is forgotten."""
        for machine in self.machines:
            revision = self.ask(machine)["revision"]
            self.number = revision["number"] if revision else 0
        self.agents = ()
        self.up()
        for machine in self.machines:
            self.wait(lambda rows: not alive(rows), machine)

    def program(self, text: str, *needs: str, first: str = "", then: str = "", say: str = "", **keys: Any) -> AgentSpec:
        """A program of PROGRAM's kind; `text` is its id, its port is not bound."""
        script = self.folder / "program.py"
        if not script.exists():
            script.write_text(PROGRAM)
        env = {"FIRST": first, "THEN": then, "SAY": say} | keys.pop("env", {})
        keys = {"port": 0, "sockets": "self", "watchdog_s": 0.0, "target": ProgramTarget(script=str(script))} | keys
        return agent(text, *needs, env=env, **keys)

    # -- what they see

    def rows(self, machine: str = "") -> dict[str, AgentRow]:
        answer = self.ask(machine, "status")
        return {str(row.id): row for row in map(AgentRow.from_wire, answer["agents"])}

    def row(self, text: str) -> AgentRow:
        return self.rows()[str(aid(text))]

    def wait(self, reached: Callable[[dict[str, AgentRow]], object], machine: str = "") -> dict[str, AgentRow]:
        """The rows as soon as `reached` says so; told by the node, not asked for. AssertionError shows what there is."""
        rows: dict[str, AgentRow] = {}
        deadline_s = time.monotonic() + PATIENCE_S
        with self.connect(machine) as connection:
            for event in connection.events("watch", tick_s=0.5):
                rows |= {str(row.id): row for row in map(AgentRow.from_wire, (event or {"rows": ()})["rows"])}
                if reached(rows):
                    return rows
                if time.monotonic() > deadline_s:
                    break
        shown = "\n".join(f"{id} {row.phase} {row.reason} {row.waiting_for}" for id, row in sorted(rows.items()))
        raise AssertionError(f"not reached:\n{shown}\n{self.node_log(machine)[-3000:]}")

    def wait_phase(self, phase: Phase, *texts: str) -> dict[str, AgentRow]:
        """Until these (default: all of the fleet) are in `phase`."""
        ids = [str(aid(text)) for text in texts] or [str(spec.id) for spec in self.agents]
        return self.wait(lambda rows: all(id in rows and rows[id].phase is phase for id in ids))

    # -- the end

    def pids(self) -> dict[int, str]:
        """What there is of this cluster, by its titles."""
        found = {}
        for stat in procinfo.all_stats():
            title = procinfo.command(stat.pid)
            if stat.is_alive and title.startswith("agentkit: ") and f" {self.cluster}/" in title:
                found[stat.pid] = title
        return found

    def down(self) -> None:
        """Everything ends on purpose; AssertionError when something is left."""
        pidfds = []
        for pid in self.pids():
            with suppress(ProcessLookupError):  # it was on its way out
                pidfds.append(os.pidfd_open(pid))
        try:
            if any(p.control.exists() for p in map(self.places, self.machines)):
                for machine in sorted(self.machines):
                    with suppress(NoNode, NodeLost), NodeConnection.connect(self.places(machine).control) as connection:
                        self.number = (connection.ask("hello")["revision"] or {"number": 0})["number"]
                        connection.ask("stop_node")
            wait_gone(pidfds)
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
        assert not self.pids(), self.pids()

    def kill_all(self) -> None:
        """Whatever a failed test has left."""
        for _ in range(20):
            left = self.pids()
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.05)


def wait_gone(pidfds: list[int]) -> None:
    """Until all of these processes have ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], max(0.0, deadline_s - time.monotonic()))[0], "a process does not end"


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process and wait until it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, number)
        wait_gone([pidfd])
    finally:
        os.close(pidfd)


@contextmanager
def nodes(*machines: str) -> Iterator[Nodes]:
    """Booted nodes; down at the end, by force after a failure."""
    folder = Path(tempfile.mkdtemp(prefix="ak-", dir="/tmp"))  # short: sockets have 107 bytes
    cluster = Nodes(folder, f"t{os.getpid()}_{folder.name[3:]}", machines or ("m",))
    try:
        cluster.boot()
        yield cluster
        cluster.down()
    finally:
        cluster.kill_all()
        shutil.rmtree(folder, ignore_errors=True)


def alive(rows: dict[str, AgentRow]) -> list[str]:
    return [id for id, row in rows.items() if row.phase in ALIVE]
