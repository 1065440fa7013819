"""`agentkit node upgrade`: another code in the place of a running node's, and agents that do not notice."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from startup.machines.waits import connect_when_listening
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, is_alive, kill
from tests.startup.cli.launched import REPOSITORY

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = """
    from __future__ import annotations
    from agentkit import BaseAgent, rpc

    class Knows(BaseAgent):
        @rpc(idempotent=True)
        async def version(self) -> str:
            from agentkit._version import VERSION
            return VERSION
"""


def with_own_code(*machines: str) -> Scratch:
    """A fleet that runs a copy of the code, which can be changed."""
    made = Scratch(machines=machines)
    for package in ("agentkit", "startup"):
        shutil.copytree(REPOSITORY / package, made.folder / "code" / package)
    made.more_environment["PYTHONPATH"] = str(made.folder / "code")
    made.python("knowing.py", AGENTS)
    made.write(
        {
            name: {"agent": "knowing:Knows", "machine": machines[number % len(machines)]}
            for number, name in enumerate(("A", "B"))
        }
    )
    return made


@pytest.fixture
def fleet() -> Iterator[Scratch]:
    with with_own_code("m") as made:
        made.up()
        yield made


def install(fleet: Scratch, version: str) -> None:
    change(fleet, "agentkit/_version.py", f'VERSION = "{version}"\n')


def change(fleet: Scratch, name: str, text: str) -> None:
    path = fleet.folder / "code" / name
    path.unlink()
    path.write_text(text)


@contextmanager
def asked_all_the_while(fleet: Scratch) -> Iterator[list[str]]:
    """`status` and a call, again and again; what failed."""
    over, failures = threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            told = fleet.run("status", "--json")
            if told.code:
                failures.append(told.err)
            try:
                fleet.call("A", "version")
            except Exception as exc:
                failures.append(repr(exc))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield failures
    finally:
        over.set()
        thread.join()


def test_the_node_and_what_it_forks_run_the_new_code_and_agents_do_not_notice(fleet: Scratch) -> None:
    old = fleet.call("A", "version")
    before, node, zygote = fleet.rows(), fleet.node_pid(), fleet.zygote_pid()
    install(fleet, "9.8.7")
    with asked_all_the_while(fleet) as failures:
        told = fleet.run("node", "upgrade", "--json")
    assert told.code == 0, told.err
    assert failures == []
    (machine,) = told.json["machines"]
    assert (machine["from"], machine["to"], machine["pid"]) == (old, "9.8.7", fleet.node_pid())
    assert fleet.node_pid() != node
    assert not is_alive(node)
    after = fleet.wait_phase(Phase.READY, "A", "B")
    assert {name: (row.pid, row.restarts) for name, row in after.items()} == {
        name: (row.pid, 0) for name, row in before.items()
    }
    assert fleet.zygote_pid() == zygote  # the same process: it has taken up the new code
    assert fleet.call("A", "version") == old
    kill(after["B"].pid)
    again = fleet.wait_restarted("B", after["B"])
    assert again.endpoints == before["B"].endpoints
    assert fleet.call("B", "version") == "9.8.7"
    # and once more, by the one that took over
    install(fleet, "9.8.8")
    assert fleet.run("node", "upgrade").code == 0
    assert fleet.ask("hello")["version"] == "9.8.8"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("startup/node/daemon.py", "def run(:\n", "SyntaxError"),
        pytest.param(
            "startup/node/daemon.py",
            "import sys\ndef run(options):\n    sys.exit(3)\n",
            "it ended without a word",
            marks=pytest.mark.soak(only=True),
        ),
        pytest.param(
            "startup/node/daemon.py",
            "import time\ndef run(options):\n    time.sleep(1000)\n",
            "it said nothing within 3 s",
            marks=pytest.mark.soak(only=True),
        ),
    ],
)
def test_code_that_does_not_come_up_leaves_the_old_one_in_charge_and_the_command_says_why(
    fleet: Scratch, file: str, text: str, said: str
) -> None:
    before, node = fleet.rows(), fleet.node_pid()
    change(fleet, file, text)
    with asked_all_the_while(fleet) as failures:
        told = fleet.run("node", "upgrade", "--within", "3s" if "3 s" in said else "60s")
    assert told.code == 1
    assert said in told.err
    assert failures == []
    assert fleet.node_pid() == node
    after = fleet.wait_phase(Phase.READY, "A", "B")
    assert {name: row.pid for name, row in after.items()} == {name: row.pid for name, row in before.items()}
    kill(after["B"].pid)
    fleet.wait_restarted("B", after["B"])


def test_machines_are_upgraded_one_after_another_and_nobody_is_missed() -> None:
    with with_own_code("a", "b") as fleet:
        fleet.up()
        install(fleet, "9.8.7")
        which = fleet.run("node", "upgrade")
        assert which.code == 2
        assert "one of a, b" in which.err
        before = {name: row.pid for name, row in fleet.rows("a").items()}
        told = fleet.run("node", "upgrade", "--all", "--json")
        assert told.code == 0, told.err
        assert [it["to"] for it in told.json["machines"]] == ["9.8.7", "9.8.7"]
        assert {name: row.pid for name, row in fleet.rows("a").items()} == before
        assert "unreachable" not in fleet.node_log("a") + fleet.node_log("b")


def test_a_supervisor_is_told_which_process_is_the_node_now(fleet: Scratch) -> None:
    assert fleet.run("down").code == 0
    path = str(fleet.folder / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(PATIENCE_S)
        fleet.more_environment["NOTIFY_SOCKET"] = path
        first = fleet.popen("node", "run", "--cluster", "c", "--machine", "m", "--supervised")
        connect_when_listening(fleet.place("m"), within_s=PATIENCE_S).close()
        assert f"MAINPID={first.pid}".encode() in systemd.recv(4096).split(b"\n")
        assert fleet.run("node", "upgrade").code == 0
        assert first.wait(timeout=PATIENCE_S) == 0
        second = fleet.node_pid()
        assert f"MAINPID={second}".encode() in systemd.recv(4096).split(b"\n")
        os.kill(second, signal.SIGTERM)
        first.communicate(timeout=PATIENCE_S)  # its output is the other's, too, who ends


def test_who_waits_for_a_node_in_a_terminal_waits_for_the_one_after_it_too(fleet: Scratch) -> None:
    assert fleet.run("down").code == 0
    first = fleet.popen("node", "run", "--cluster", "c", "--machine", "m")
    connect_when_listening(fleet.place("m"), within_s=PATIENCE_S).close()
    assert fleet.run("node", "upgrade").code == 0
    second = fleet.node_pid()
    assert second != first.pid
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0
    assert not is_alive(second)
