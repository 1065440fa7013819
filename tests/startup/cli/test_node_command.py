"""`agentkit node`: one machine's node as systemd runs it, and its end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from startup.machines import orphans
from startup.machines.waits import connect_when_listening
from tests.startup.cli.launched import PATIENCE_S, Launched

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def fleet() -> Iterator[Launched]:
    with Launched() as launched:
        yield launched


def test_a_node_in_the_foreground_is_found_by_up_and_ends_with_its_agents_on_stop(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    node = fleet.popen("node", "run", "--cluster", "c", "--machine", "m", "--supervised")
    connect_when_listening(fleet.place("m"), within_s=PATIENCE_S).close()
    fleet.up()
    told = fleet.run("node", "status", "--json").json["nodes"]
    assert [entry["node"]["pid"] for entry in told] == [node.pid]
    stopped = fleet.run("node", "stop", "--json")
    assert stopped.code == 0, stopped.err
    node.communicate(timeout=PATIENCE_S)
    assert node.returncode == 0
    assert orphans.processes_of(fleet.place("m")) == set()


def test_a_node_that_was_stopped_brings_its_part_of_the_fleet_back(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fleet.up()
    assert fleet.run("node", "stop").code == 0
    assert fleet.run("status").code == 4
    node = fleet.popen("node", "run", "--cluster", "c")
    connect_when_listening(fleet.place("m"), within_s=PATIENCE_S).close()
    assert fleet.run("up", "fleet.yaml").code == 0
    assert fleet.run("down").code == 0
    node.communicate(timeout=PATIENCE_S)


def test_the_supervisor_is_told_when_the_node_is_ready(fleet: Launched) -> None:
    path = str(fleet.folder / "systemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(PATIENCE_S)
        fleet.more_environment["NOTIFY_SOCKET"] = path
        node = fleet.popen("node", "run", "--cluster", "c", "--machine", "m", "--supervised")
        assert b"READY=1" in systemd.recv(4096).split(b"\n")
        os.kill(node.pid, signal.SIGTERM)
        node.communicate(timeout=PATIENCE_S)
        assert node.returncode == 0


def test_which_node_is_meant_has_to_be_clear(fleet: Launched) -> None:
    assert fleet.run("node", "status").code == 4
    assert fleet.run("node", "stop").code == 4
    unclear = fleet.run("node", "unit")
    assert unclear.code == 2
    assert "--cluster" in unclear.err
    told = fleet.run("node", "unit", "--cluster", "c", "--machine", "m", "--json").json
    assert told["name"] == "agentkit-c-m.service"
    assert "ExecStart=" in told["unit"]
    assert "--host" not in told["unit"]


def test_the_unit_tells_where_the_node_listens_before_its_first_up_and_where_its_keys_are(fleet: Launched) -> None:
    machines = "machines: {m: {host: 127.0.0.7, node_port: 10007}}\n"
    (fleet.folder / "startup_config.yaml").write_text(f"version: 1\ncluster: c\n{machines}agent_groups: {{}}\n")
    fleet.more_environment["AGENTKIT_KEYS"] = "/etc/keys of us"
    unit = fleet.run("node", "unit", "--cluster", "c", "--machine", "m").out
    assert "node run --supervised --cluster c --machine m --host 127.0.0.7 --node-port 10007\n" in unit
    assert 'Environment="AGENTKIT_KEYS=/etc/keys of us"\n' in unit
    chosen = fleet.run("node", "unit", "--cluster", "c", "--machine", "m", "--host", "10.0.0.9").out
    assert "--machine m --host 10.0.0.9\n" in chosen
