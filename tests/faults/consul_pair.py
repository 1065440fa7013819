"""Two nodes that know each other through Consul alone, and somebody who calls from one to the other all the time."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentkit.client import Client
from agentkit.errors import CallError
from startup.node import procinfo
from startup.spec.fleet import AgentSpec, AgentTarget, ConsulAccess
from tests.startup.node.cluster import PATIENCE_S, Nodes
from tests.startup.plan.builders import agent

ECHO = """
from agentkit import BaseAgent, rpc

class Echo(BaseAgent):
    @rpc
    async def echo(self, text: str) -> str:
        return text
"""


class Apart(Nodes):
    """A node of a cluster whose other machine is in another folder: nothing but Consul connects the two."""

    def pids(self) -> dict[int, str]:
        found = {}
        for stat in procinfo.all_stats():
            title = procinfo.command(stat.pid)
            if stat.is_alive and title.startswith("agentkit: ") and f" {self.cluster}/{self.machines[0]}" in title:
                found[stat.pid] = title
        return found

    def begin(self, access: ConsulAccess, *agents: AgentSpec) -> None:
        self.up(*agents, registry="consul", consul=access)

    def echo(self, name: str = "Echo", port: int = 21900) -> AgentSpec:
        (self.folder / "echo.py").write_text(ECHO)
        return agent(f"{self.machines[0]}/{name}", target=AgentTarget(module="echo", cls="Echo"), port=port)

    def registry(self) -> dict[str, Any]:
        return dict(self.ask(self.machines[0], "registry"))


@contextmanager
def pair() -> Iterator[tuple[Apart, Apart]]:
    """Nodes of machines `a` and `b`; everything of them ends."""
    folders = [Path(tempfile.mkdtemp(prefix="ak-", dir="/tmp")) for _ in range(2)]
    cluster = f"t{os.getpid()}_{folders[0].name[3:]}"
    found = Apart(folders[0], cluster, ("a",)), Apart(folders[1], cluster, ("b",))
    try:
        for nodes in found:
            nodes.boot()
        yield found
        for nodes in found:
            nodes.down()
    finally:
        for nodes in found:
            nodes.kill_all()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


class Calling:
    """Calls of `Echo` through a node, one after the other, until the block ends; none may fail."""

    def __init__(self, nodes: Apart, name: str = "Echo") -> None:
        self.answered = 0
        self.failed: list[CallError] = []
        self._node = str(nodes.places().control)
        self._name = name
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._call()), name="calling")

    async def _call(self) -> None:
        async with Client(node=self._node) as client:
            while not self._is_over.is_set():
                try:
                    await client.call(self._name, "echo", {"text": "x"}, timeout=5)
                    self.answered += 1
                except CallError as error:
                    self.failed.append(error)
                await asyncio.sleep(0.01)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            before = self.answered
            eventually(lambda: self.answered > before + 10 or self.failed)  # and afterwards as before
        self._is_over.set()
        self._thread.join(PATIENCE_S)
        if kind is None:
            assert not self.failed, self.failed[:3]
            assert self.answered


def eventually(reached: Callable[[], object]) -> None:
    """Asked until it is so: Consul tells nobody of us."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline_s, "not reached"
        time.sleep(0.05)
