"""What a fleet stands on gives way: the disk of its state directory is full; the machine is switched off and on."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgpack
import pytest

from startup.machines import orphans
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, kill, until
from tests.hosts.conftest import demand
from tests.startup.cli.launched import processes_below

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = """
    from __future__ import annotations
    from agentkit import BaseAgent, rpc

    class Talks(BaseAgent):
        @rpc(idempotent=True)
        async def say(self, words: str) -> int:
            self.logger.info(words)
            return len(words)
"""


@pytest.fixture
def fleet() -> Iterator[Scratch]:
    with Scratch() as scratch:
        scratch.python("talking.py", AGENTS)
        restart = {"delay": "10ms", "max_attempts": 100}
        scratch.write({name: {"agent": "talking:Talks", "restart": restart} for name in ("A", "B", "Stopped")})
        yield scratch


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """3 MB below `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    demand(f"no file system can be mounted here: {mounted.stderr.strip()}" if mounted.returncode else "")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with open(path, "ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x")


def test_a_full_disk_stops_nothing_is_told_and_forgotten_when_there_is_room(fleet: Scratch) -> None:
    with small_disk(fleet.folder / "state"):
        fleet.up()
        assert fleet.run("stop", "Stopped").code == 0
        before = fleet.rows()
        fill(fleet.folder / "state" / "filler")
        # agents answer, and their log lines are dropped
        for _ in range(20):
            assert fleet.call("A", "say", words="x" * 2000) == 2000
        assert "x" * 2000 not in fleet.log("A")[-1000:]
        # what crashes comes back, it is told, and what the node knew is known to the next one
        kill(before["B"].pid)
        restarted = fleet.wait_restarted("B", before["B"])
        assert "m: no room: " in fleet.run("status").out
        kill_node(fleet)
        after = fleet.wait_phase(Phase.READY, "A", "B")
        assert (after["A"].pid, after["B"].pid) == (before["A"].pid, restarted.pid)
        assert (after["B"].restarts, after["Stopped"].phase) == (1, Phase.STOPPED)
        # a change that can't be kept is refused, and changes nothing
        fill(fleet.folder / "state" / "more")
        refused = fleet.run("stop", "A")
        assert refused.code == 1
        assert "No space left on device" in refused.err
        assert fleet.rows()["A"].phase is Phase.READY
        # and all is as before when there is room again
        for name in ("filler", "more"):
            (fleet.folder / "state" / name).unlink()
        assert "no room" not in fleet.run("status").out
        assert fleet.run("stop", "A").code == 0
        assert fleet.call("B", "say", words="room again") == 10
        until(lambda: "room again" in fleet.log("B"))
        incarnation = after["B"].incarnation
        kill(after["B"].pid)
        assert fleet.wait_restarted("B", after["B"]).incarnation > incarnation
        assert fleet.run("down").code == 0


def kill_node(fleet: Scratch) -> None:
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)


def test_after_a_reboot_the_unit_brings_the_fleet_back_as_it_was(fleet: Scratch) -> None:
    fleet.up()
    assert fleet.run("stop", "Stopped").code == 0
    assert fleet.run("scale", "B=2").code == 0
    before = fleet.wait_phase(Phase.READY, "A", "B", "B#1")
    lines = [line.partition("=")[::2] for line in fleet.run("node", "unit", "--cluster", "c").out.splitlines()]
    unit = dict(lines)
    environment = dict(shlex.split(value)[0].partition("=")[::2] for key, value in lines if key == "Environment")
    switch_off(fleet)
    path = str(fleet.folder / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(PATIENCE_S)
        node = fleet.begin(*shlex.split(unit["ExecStart"]), more_environment=environment | {"NOTIFY_SOCKET": path})
        assert b"READY=1" in systemd.recv(4096).split(b"\n")
    after = fleet.wait_phase(Phase.READY, "A", "B", "B#1")
    assert after["Stopped"].phase is Phase.STOPPED
    for name in ("A", "B", "B#1"):
        assert after[name].endpoints == before[name].endpoints
        assert after[name].incarnation > before[name].incarnation
        assert after[name].restarts == 0
    assert fleet.call("A", "say", words="hello") == 5
    assert fleet.execute(*shlex.split(unit["ExecStop"]), more_environment=environment).code == 0
    node.communicate(timeout=PATIENCE_S)


def switch_off(fleet: Scratch) -> None:
    """Every process at once, and what lies in memory: the run directory, and which boot this was."""
    place = fleet.place("m")
    while left := (orphans.processes_of(place) | processes_below(fleet.folder)) - {os.getpid()}:
        with suppress(ProcessLookupError):
            kill(*left)
    shutil.rmtree(fleet.run_root)
    snapshot = place.state / "processes.msgpack"
    snapshot.write_bytes(msgpack.packb({**msgpack.unpackb(snapshot.read_bytes()), "boot": "another"}))
