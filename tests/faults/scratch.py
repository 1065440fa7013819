"""A fleet of a test's own agents, run by the command line and looked at from outside: its processes, rows, calls and logs."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from agentkit.client import BlockingClient
from agentkit.errors import NoNode
from agentkit.names import AgentId
from startup.cli.cluster import Watch
from startup.control import NodeConnection, UnixDoor
from startup.errors import NodeLost
from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from tests.startup.cli.launched import Launched

#: Two people may run things on the same two cores: what should happen may take so long, in seconds.
PATIENCE_S = 60.0

Rows = Mapping[str, AgentRow]


@dataclass
class Scratch(Launched):
    """`Launched` with eyes and hands of its own. Agents are named by `name`, or `machine/name` with several machines."""

    measured: bool = False

    def python(self, name: str, source: str) -> Path:
        """A file of Python in the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source))
        return path

    def text(self, yaml: str, name: str = "fleet.yaml") -> Path:
        """A fleet file as somebody wrote it."""
        return self.python(name, yaml)

    # -- nodes

    def ask(self, operation: str, machine: str = "", **arguments: Any) -> Any:
        """One question to a node, which may just be starting again."""
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self.connect(machine) as connection:
                    return connection.ask(operation, **arguments)
            except NodeLost:  # it was killed while it answered
                if time.monotonic() > ends_s:
                    raise

    def connect(self, machine: str = "") -> NodeConnection:
        """A conversation with a node that may just be starting."""
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return NodeConnection.connect(self.place(machine or self.machines[0]).control)
            except NoNode:
                if time.monotonic() > ends_s:
                    raise
            time.sleep(0.01)

    def node_pid(self, machine: str = "") -> int:
        return int(self.ask("hello", machine)["pid"])

    def zygote_pid(self, machine: str = "") -> int:
        """Of the zygote that the node is connected to; waits for a new one."""
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            pid = self.ask("status", machine, memory=False)["node"]["zygote_pid"]
            if pid or time.monotonic() > ends_s:
                return int(pid)

    def wait_for_another_node(self, than: int, machine: str = "") -> int:
        """Until a node that is not `than` answers; its pid."""
        ends_s = time.monotonic() + PATIENCE_S
        while (pid := self.node_pid(machine)) == than:
            assert time.monotonic() < ends_s, "no other node came"
        return pid

    # -- agents

    def rows(self, machine: str = "") -> dict[str, AgentRow]:
        answer = self.ask("status", machine, memory=False)
        return {self._short(row.id): row for row in map(AgentRow.from_wire, answer["agents"])}

    def wait(self, reached: Callable[[Rows], object], *, within_s: float = PATIENCE_S) -> dict[str, AgentRow]:
        """The rows as soon as `reached` says so; told by the nodes, not asked for. AssertionError shows what there is."""

        def done(rows: Mapping[AgentId, AgentRow]) -> bool:
            named = {self._short(id): row for id, row in rows.items()}
            try:
                return bool(reached(named))
            except KeyError:  # an agent that no node has told of yet
                return False

        for machine in self.machines:
            self.connect(machine).close()
        with Watch({machine: UnixDoor(str(self.place(machine).control)) for machine in self.machines}) as watch:
            ends_s = time.monotonic() + within_s
            while not done(watch.rows):
                left_s = ends_s - time.monotonic()
                if left_s <= 0:
                    shown = "\n".join(
                        f"{id} {row.phase} {row.reason} {row.last_exit}" for id, row in watch.rows.items()
                    )
                    raise AssertionError(f"not reached:\n{shown}\n{self.node_log()[-3000:]}")
                watch.wait(min(left_s, 1.0))
                watch.revive()
            return {self._short(id): row for id, row in watch.rows.items()}

    def wait_phase(self, phase: Phase, *names: str) -> dict[str, AgentRow]:
        return self.wait(lambda rows: all(rows[name].phase is phase for name in names))

    def wait_restarted(self, name: str, than: AgentRow) -> AgentRow:
        """Until `name` is ready in another process."""
        return self.wait(lambda rows: rows[name].phase is Phase.READY and rows[name].pid not in (None, than.pid))[name]

    def call(self, target: str, method: str, /, *, timeout: float = PATIENCE_S, **arguments: Any) -> Any:
        with BlockingClient(node=str(self.place(self.machines[0]).control)) as client:
            return client.call(target, method, arguments, timeout=timeout)

    def call_directly(self, row: AgentRow, method: str, /, **arguments: Any) -> Any:
        """Without any node."""
        name = str(row.id.name)
        with BlockingClient(peers={name: row.endpoints["inbox-local"]}) as client:
            return client.call(name, method, arguments, timeout=PATIENCE_S)

    def log(self, name: str) -> str:
        machine, _, instance = name.rpartition("/")
        return self.place(machine or self.machines[0]).log(instance).read_text()

    def node_log(self, machine: str = "") -> str:
        return (self.place(machine or self.machines[0]).logs / "node.log").read_text()

    def told(self, name: str = "told") -> list[str]:
        """Lines that agents have appended to a file of the project."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def _short(self, id: AgentId) -> str:
        return id.instance if len(self.machines) == 1 else str(id)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(*pids: int | None) -> None:
    """SIGKILL to all of them at once; returns when they are gone."""
    pidfds = [os.pidfd_open(pid) for pid in pids if pid]
    try:
        for pidfd in pidfds:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], PATIENCE_S)[0], "a killed process does not end"
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def until(is_so: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """For what nobody tells: a file that somebody writes, /proc."""
    ends_s = time.monotonic() + within_s
    while not (found := is_so()):
        assert time.monotonic() < ends_s, "not reached"
        time.sleep(0.01)
    return found
