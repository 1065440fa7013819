"""A small fleet of its own in a folder of its own, driven by the command line as an operator would."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agentkit.directory.locate import node_files
from startup.machines import orphans
from startup.node.limits import cgroups
from startup.node.paths import Places
from tests.measured import unmeasured

REPOSITORY = Path(__file__).resolve().parents[3]
#: No command of a test takes longer, in seconds.
PATIENCE_S = 60.0

#: Agents of the fleets in these tests.
AGENTS = '''
from __future__ import annotations
import asyncio, os, time
from agentkit import AgentConfig, BaseAgent, rpc


class Plain(BaseAgent):
    class Config(AgentConfig):
        words: str = "hello"

    async def on_start(self) -> None:
        self.logger.info("started with %s", self.config.words)

    @rpc(idempotent=True)
    async def echo(self, text: str, times: int = 1) -> str:
        """The text again."""
        return text * times

    @rpc
    async def fail(self) -> None:
        raise ValueError("as asked")

    @rpc
    async def pass_on(self, to: list[str]) -> int:
        return 1 + (await self.call(to[0], "pass_on", {"to": to[1:]}) if to else 0)

    @rpc
    def pid(self) -> int:
        return os.getpid()


class Broken(BaseAgent):
    async def on_start(self) -> None:
        raise FileNotFoundError("model.bin is not there")


class Slow(BaseAgent):
    """Not ready before a file is there."""
    class Config(AgentConfig):
        until: str

    async def on_start(self) -> None:
        while not os.path.exists(self.config.until):
            await asyncio.sleep(0.02)
'''


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Launched:
    """Use as a context manager: nothing of it is left afterwards, and a test that leaves something behind fails."""

    cluster: str = "c"
    machines: Sequence[str] = ("m",)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ak")))
    more_environment: dict[str, str] = field(default_factory=dict)
    patience_s: float = PATIENCE_S  #: with one command
    measured: bool = True  #: by coverage, when the tests are
    _begun: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Launched:
        (self.folder / "fleet_agents.py").write_text(AGENTS)
        return self

    def __exit__(self, *exc: object) -> None:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for process in self._begun:
                with process:  # closes its pipes; it runs only when the test failed meanwhile
                    process.kill()
            stack.callback(self._clear_cgroups)
            stack.callback(self._kill_what_is_left)
            for info in node_files(self.run_root):
                self.run("down", "--cluster", info.cluster)
            left = self._left()
            ends_s = time.monotonic() + 5.0
            while left and time.monotonic() < ends_s:  # a node that was started in the instant of `down` ends by itself
                time.sleep(0.05)
                left = self._left()
            assert not left, f"`down` left {left}"

    def _left(self) -> set[int]:
        """A zygote shows no environment (its title lies there), but listens."""
        return processes_below(self.folder).union(*(orphans.processes_of(place) for place in self.places))

    def _clear_cgroups(self) -> None:
        """Of a test whose last node was killed, and nobody called `down`: the kernel keeps empty ones for ever."""
        for place in self.places:
            cgroups.clear(place.run)

    def _kill_what_is_left(self) -> None:
        """A test that failed, or a `down` that did, must not leave a fleet behind."""
        while left := self._left():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            orphans.wait_gone(left, 5.0)

    @property
    def run_root(self) -> Path:
        return self.folder / "run"

    @property
    def places(self) -> list[Places]:
        return [self.place(machine) for machine in self.machines]

    def place(self, machine: str) -> Places:
        return Places.of(self.cluster, machine, self.environment)

    @property
    def environment(self) -> dict[str, str]:
        given = os.environ if self.measured else unmeasured(os.environ)
        kept = {key: value for key, value in given.items() if not key.startswith("AGENTKIT_")}
        return kept | {
            "AGENTKIT_RUN_DIR": str(self.run_root),
            "AGENTKIT_STATE_DIR": str(self.folder / "state"),
            "PYTHONPATH": str(REPOSITORY),
            "COLUMNS": "200",
            **self.more_environment,
        }

    @property
    def file(self) -> Path:
        return self.folder / "fleet.yaml"

    def write(self, agents: Mapping[str, Mapping[str, Any]], *, file: str = "fleet.yaml", **facts: Any) -> Path:
        """A fleet file: agents by name, each in the group `core` on the first machine unless it says otherwise."""
        groups: dict[str, dict[str, Any]] = {}
        for name, settings in agents.items():
            own = {"machine": self.machines[0], "port": free_port(), "health_check_port": free_port(), **settings}
            if "command" not in own:
                own.setdefault("agent", "fleet_agents:Plain")
            groups.setdefault(own.pop("group", "core"), {})[name] = own
        document = {
            "version": 1,
            "cluster": self.cluster,
            "project_root": ".",
            "machines": {machine: {"host": "127.0.0.1"} for machine in self.machines},
            "port_ranges": {"core": "1024-65535"},
            "defaults": {
                "class": "core",
                "restart": {"delay": "10ms", "max_attempts": 1, "retry_failed_after": "0s"},
                "shutdown": {"grace": "2s"},
                "hibernate": {"depth": "never"},
            },
            "agent_groups": groups,
            **facts,
        }
        path = self.folder / file
        path.write_text(json.dumps(document, indent=1))  # JSON is YAML
        return path

    def popen(self, *words: str) -> subprocess.Popen[str]:
        return self.begin(sys.executable, "-m", "startup", *words)

    def run(self, *words: str) -> Result:
        return self.execute(sys.executable, "-m", "startup", *words)

    def run_on(self, machine: str, *words: str) -> Result:
        """A command that finds the node of `machine` only, as one that is typed there does."""
        return self.execute(sys.executable, "-m", "startup", *words, more_environment=self.on(machine))

    def on(self, machine: str) -> dict[str, str]:
        """What a command's environment has beside, for `run_on`."""
        root = self.folder / f"on-{machine}"
        if not root.exists():
            (root / self.cluster).mkdir(parents=True)
            (root / self.cluster / machine).symlink_to(self.place(machine).run)
        return {"AGENTKIT_RUN_DIR": str(root)}

    def begin(self, *command: str, more_environment: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[str]:
        """Any program, in the fleet's folder and environment."""
        pipe, environment = subprocess.PIPE, {**self.environment, **more_environment}
        process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)
        self._begun.append(process)
        return process

    def execute(self, *command: str, more_environment: Mapping[str, str] = MappingProxyType({})) -> Result:
        process = self.begin(*command, more_environment=more_environment)
        try:
            out, err = process.communicate(timeout=self.patience_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            process.communicate()
            raise
        return Result(process.returncode, out, err)

    def up(self, *words: str) -> Any:
        """The document of an `up` that has to succeed."""
        result = self.run("up", str(self.file), "--json", *words)
        assert result.code == 0, result.err + result.out
        return result.json

    def pids(self) -> dict[str, int | None]:
        """By instance."""
        return {agent["instance"]: agent["pid"] for agent in self.run("status", "--json").json["agents"]}


#: Tests run in several workers at once, and a port is bound some time after it was found free: each has ports of its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
#: Below those that the kernel gives to outgoing connections.
_PORTS = random.SystemRandom().sample(range(20_000 + _WORKER, 32_000, 4), 3_000)


def free_port() -> int:
    """One that nobody listens on, each once."""
    while True:
        port = _PORTS.pop()
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def processes_below(folder: Path) -> set[int]:
    """Everything that was started with this folder in its environment: commands, nodes, zygotes, agents, what those forked."""
    mark = os.fsencode(folder) + b"/"
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found - {os.getpid()}
