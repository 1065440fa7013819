"""Many at once: the large fleet with few descriptors, and five hundred that become ready in the same instant."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import socket
import sys

import pytest

from startup.plan.phase import Phase
from tests.faults.scratch import Scratch
from tests.startup.cli.launched import REPOSITORY

pytestmark = [pytest.mark.process, pytest.mark.slow]

FLEET84 = REPOSITORY / "configs" / "fleet84.yaml"

#: Speaks sd_notify; says READY as soon as nobody holds the lock of `gate` any more.
GATED = """
import fcntl, os, signal, socket
with open("gate") as gate:
    fcntl.flock(gate, fcntl.LOCK_SH)
tell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
tell.connect(os.environ["NOTIFY_SOCKET"])
tell.send(b"READY=1")
signal.pause()
"""


@pytest.fixture
def fleet84() -> Scratch:
    return Scratch(cluster="fleet84", machines=("mainpc", "pc2"))


def free_offset() -> int:
    """By which all of fleet84's ports can be moved to where nobody listens."""
    ports = [int(port) for port in re.findall(r"port: (\d+)", FLEET84.read_text())]
    while True:
        offset = random.randrange(3000, 5500)  # above the forbidden ports, below those that the kernel gives out
        if all(map(is_free, (port + offset for port in ports))):
            return offset


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("limit", ["-Sn 1024", "-n 1024"], ids=["soft", "hard"])
def test_84_agents_come_up_with_ulimit_n_1024(fleet84: Scratch, limit: str) -> None:
    with fleet84 as fleet:
        words = [sys.executable, "-m", "startup", "up", str(FLEET84), "--port-offset", str(free_offset()), "--json"]
        result = fleet.execute("bash", "-c", f'ulimit {limit} && exec "$@"', "bash", *words)
        assert result.code == 0, result.err
        told = result.json
        assert (told["ready"], told["failed"], told["skipped"], told["degraded"]) == (84, [], [], [])
        # the order was really used: every agent has called those it needs, some of them on the other machine
        who = fleet.call("FleetAuditor", "whoami")
        assert who["answered"]
        assert not who["silent"]
        for machine in fleet.machines:
            with open(f"/proc/{fleet.node_pid(machine)}/limits") as file:
                (soft,) = re.findall(r"Max open files +(\d+)", file.read())
            assert int(soft) == 1024 if "S" not in limit else int(soft) > 1024


def test_doctor_says_what_is_needed_where_descriptors_do_not_suffice(fleet: Scratch) -> None:
    words = [sys.executable, "-m", "startup", "doctor", "--agents", "84", "--json"]
    result = fleet.execute("bash", "-c", 'ulimit -n 128 && exec "$@"', "bash", *words)
    assert result.code == 1, result.out
    (failed,) = [check for check in result.json["checks"] if check["verdict"] == "fail" and "128" in check["value"]]
    assert failed["need"]
    assert "ulimit" in failed["fix"] or "LimitNOFILE" in failed["fix"]


@pytest.mark.timeout(400)
def test_500_ready_at_once_are_all_heard(fleet: Scratch) -> None:
    fleet.python("gated.py", GATED)
    gate = fleet.folder / "gate"
    gate.touch()
    program = {"agent": None, "script_path": "gated.py", "ready": "notify", "sockets": "self", "replicas": 500}
    fleet.write({"Gated": program | {"port": 13_500}})
    with open(gate) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = fleet.run("up", "fleet.yaml", "--no-wait")
        assert result.code == 0, result.err
        fleet.wait(lambda rows: sum(row.pid is not None for row in rows.values()) == 500, within_s=180)
    rows = fleet.wait(lambda rows: sum(row.phase is Phase.READY for row in rows.values()) == 500, within_s=120)
    assert len({row.pid for row in rows.values()}) == 500
    result = fleet.run("status", "--json")
    assert {agent["phase"] for agent in json.loads(result.out)["agents"]} == {"ready"}
    assert os.path.exists(f"/proc/{rows['Gated'].pid}")
