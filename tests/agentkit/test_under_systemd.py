"""Agents whose sockets are systemd's sleep deep, and nobody who calls notices. activator.py stands in for systemd."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import zmq

from agentkit import Client
from agentkit.agent.hibernation.activators import NodeActivator, SystemdActivator, activator_of
from agentkit.client import BlockingClient
from agentkit.directory.mesh import MeshDirectory
from agentkit.directory.static import StaticDirectory
from agentkit.settings import AgentSettings
from tests.agentkit.support import ROOT, eventually

process = pytest.mark.process
#: A service is a whole Python that starts, and others test beside us.
PATIENCE_S = 60.0
SLEEPS = 8

NAPPING = """
import os
from agentkit import AgentState, BaseAgent, every, rpc

class Napping(BaseAgent):
    class State(AgentState):
        runs: int = 0

    @rpc
    async def run_once(self, key: str) -> int:
        self.state.runs += 1
        with open(os.environ["RUNS"], "a") as file:
            file.write(key + "\\n")
        return os.getpid()

    @rpc
    async def runs(self) -> int:
        return self.state.runs

class Ticking(Napping):
    @every("1h")
    async def tick(self): pass

globals()[os.environ["CLASS"]].main()
"""


class Systemd:
    """The stand-in with one agent, and what it has said so far."""

    def __init__(self, folder: Path, cls: str, names: tuple[str, ...], after_s: float = 0.05) -> None:
        self.runs = folder / "runs"
        self.log = folder / "log"
        (folder / "napping.py").write_text(NAPPING)
        self._heard: list[dict[str, Any]] = []
        inherited = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith("COVERAGE")}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/agentkit/activator.py"), ",".join(names), sys.executable,
                 str(folder / "napping.py")],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=inherited | {
                    "PYTHONPATH": str(ROOT), "RUNS": str(self.runs), "CLASS": cls, "AGENTKIT_LOG_FORMAT": "json",
                    "AGENTKIT_DATA_DIR": str(folder / "data"),
                    "AGENTKIT_HIBERNATE": json.dumps({"after_s": after_s, "depth": "deep"}),
                },
            )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._said, self._end = self.process.stdout, self.process.stdin
        self.ports: dict[str, int] = json.loads(self._said.readline())["listening"]
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._said:
            self._heard.append(json.loads(line))

    def all(self, kind: str) -> list[Any]:
        return [heard[kind] for heard in list(self._heard) if kind in heard]

    @property
    def is_asleep(self) -> bool:
        return len(self.all("started")) == len(self.all("exited"))

    @property
    def peers(self) -> dict[str, str]:
        return {"Napping": f"tcp://127.0.0.1:{self.ports['inbox-local']}"}

    def statuses(self) -> list[str]:
        return [told["STATUS"] for told in self.all("told") if "STATUS" in told]

    def ran(self) -> Counter[str]:
        return Counter(self.runs.read_text().splitlines())

    def logged(self, message: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["message"] == message]

    def close(self) -> None:
        self._end.close()
        self.process.wait(PATIENCE_S)
        self._reader.join()
        self._said.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Callable[..., Systemd]]:
    begun: list[Systemd] = []

    def begin(cls: str = "Napping", names: tuple[str, ...] = ("inbox-local",), **options: Any) -> Systemd:
        begun.append(Systemd(tmp_path, cls, names, **options))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


async def asleep(systemd: Systemd) -> None:
    await eventually(lambda: systemd.is_asleep and systemd.all("exited"), PATIENCE_S)


@process
@pytest.mark.slow
async def test_calls_at_random_times_over_many_sleeps_are_all_answered_and_run_once(
    systemd: Callable[..., Systemd],
) -> None:
    pc, draw = systemd(), random.Random(12)
    threads = asyncio.get_running_loop()
    asked: list[str] = []

    async with Client(peers=pc.peers) as kept:
        with BlockingClient(peers=pc.peers) as blocking:

            async def by(caller: Client, key: str, after_s: float) -> None:
                asked.append(key)
                await asyncio.sleep(after_s)
                await caller.call("Napping", "run_once", {"key": key}, timeout=PATIENCE_S)

            def from_thread(key: str, after_s: float) -> None:
                asked.append(key)
                time.sleep(after_s)
                blocking.call("Napping", "run_once", {"key": key}, timeout=PATIENCE_S)

            for n in range(SLEEPS):
                async with Client(peers=pc.peers) as fresh:
                    in_thread = threads.run_in_executor(None, from_thread, f"{n} thread", draw.uniform(0, 0.8))
                    await asyncio.gather(
                        by(kept, f"{n} kept", draw.uniform(0, 0.8)),
                        by(fresh, f"{n} fresh", draw.uniform(0, 0.2)),
                        in_thread,
                    )
                await asleep(pc)
        assert await kept.call("Napping", "runs", {}, timeout=PATIENCE_S) == len(asked) == 3 * SLEEPS
    await asleep(pc)
    assert pc.ran() == Counter(asked)
    exits = pc.all("exited")
    assert len(exits) > SLEEPS
    assert set(exits) == {0}
    assert len([told for told in pc.all("told") if told.get("STOPPING") == "1"]) == len(exits)


@process
async def test_a_plain_client_that_is_connected_keeps_it_from_deep_sleep_and_its_going_lets_it(
    systemd: Callable[..., Systemd],
) -> None:
    pc = systemd()
    sock = zmq.Context.instance().socket(zmq.REQ)
    sock.linger = 0
    sock.connect(pc.peers["Napping"])
    try:
        sock.send(b'{"action": "ping", "source_agent": "probe"}')
        assert await asyncio.to_thread(sock.poll, int(PATIENCE_S * 1000))
        sock.recv()
        await eventually(lambda: any("plain socket" in status for status in pc.statuses()), PATIENCE_S)
        assert not pc.all("exited")
    finally:
        sock.close()
    await asleep(pc)
    assert pc.all("exited") == [0]


@process
async def test_one_with_timers_stays_light_and_says_so_once(systemd: Callable[..., Systemd]) -> None:
    pc = systemd("Ticking")
    async with Client(peers=pc.peers) as client:
        pid = await client.call("Napping", "run_once", {"key": "1"}, timeout=PATIENCE_S)
    why = "its @every methods would be missed: systemd wakes it for connections only"
    await eventually(lambda: pc.statuses().count(f"asleep (light): {why}") > 1, PATIENCE_S)  # it tried twice
    async with Client(peers=pc.peers) as client:
        assert await client.call("Napping", "run_once", {"key": "2"}, timeout=PATIENCE_S) == pid
    assert [line["why"] for line in pc.logged("agent.not_deep")] == [why]


@process
async def test_a_health_port_of_systemds_answers_a_sleepers_probe_by_waking_it(systemd: Callable[..., Systemd]) -> None:
    pc = systemd(names=("http", "inbox-local"))

    def probe() -> int:
        with urlopen(f"http://127.0.0.1:{pc.ports['http']}/live", timeout=PATIENCE_S) as answer:
            return int(answer.status)

    assert await asyncio.to_thread(probe) == 200
    await asleep(pc)
    assert await asyncio.to_thread(probe) == 200
    await eventually(lambda: pc.all("exited") == [0, 0], PATIENCE_S)


def settings(**environ: str) -> AgentSettings:
    return AgentSettings.from_environment(environ, default_name="Napping")


async def test_who_wakes_it_is_who_holds_its_inbox() -> None:
    alone = StaticDirectory()
    assert isinstance(activator_of(settings(), alone, {"inbox-local", "http"}), SystemdActivator)
    assert isinstance(activator_of(settings(), alone, {"inbox"}), SystemdActivator)
    assert activator_of(settings(), alone, {"http"}) is None
    assert activator_of(settings(), alone, ()) is None
    assert activator_of(settings(AGENTKIT_NODE="/run/node"), alone, {"inbox"}) is None
    node = MeshDirectory("/run/node", here="m")
    try:
        assert isinstance(activator_of(settings(AGENTKIT_NODE="/run/node"), node, {"inbox"}), NodeActivator)
    finally:
        await node.close()


def test_the_units_in_the_documentation_are_what_an_agent_understands() -> None:
    text = (ROOT / "docs/hibernation.md").read_text()
    units = dict(re.findall(r"```ini\n# \S*/(\S+)\n(.*?)```", text, re.DOTALL))
    assert set(units) == {"summarizer.socket", "summarizer.service"}
    read = {}
    for name, unit in units.items():
        read[name] = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
        read[name].optionxform = str  # type: ignore[method-assign, assignment]
        read[name].read_string(unit)
    assert read["summarizer.socket"]["Socket"]["FileDescriptorName"] == "inbox-local"
    assert read["summarizer.service"]["Service"]["Type"] == "notify"
    environ = dict(re.findall(r"^Environment='?(\w+)=(.*?)'?$", units["summarizer.service"], re.MULTILINE))
    understood = settings(**environ)
    assert understood.hibernate.depth == "deep"
    assert understood.id.name == "summarizer"
