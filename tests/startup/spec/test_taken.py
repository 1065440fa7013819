"""Real sockets of real processes: who has a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.spec.load import check
from tests.startup.spec.projects import agents, loaded, one

pytestmark = pytest.mark.process

HOLDER = """
import socket, sys
taken = socket.create_server((sys.argv[1], 0), backlog=1)
print(taken.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def stranger(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """(pid, port) of a process that listens."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, request.param], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.communicate(b"")


def test_a_port_taken_by_a_stranger_names_the_process(tmp_path: Path, stranger: tuple[int, int]) -> None:
    pid, port = stranger
    found = loaded(tmp_path, agents(f"A: {{agent: 'm:C', port: {port}}}"))
    problem = one(check(found), "port-taken")
    assert problem.severity == "error"
    assert problem.place.endswith("fleet.yaml:5")
    assert f"port {port}, service port of local/A, is taken now by pid {pid}" in problem.found
    assert "python" in problem.found
    assert f"kill {pid}" in problem.fix


def test_our_own_processes_are_no_strangers(tmp_path: Path, stranger: tuple[int, int]) -> None:
    pid, port = stranger
    found = loaded(tmp_path, agents(f"A: {{agent: 'm:C', port: {port}}}"))
    assert check(found, own_pids={pid}) == ()
    assert check(found, own_ports={port}) == ()


def test_disabled_agents_and_other_machines_do_not_mind(tmp_path: Path, stranger: tuple[int, int]) -> None:
    _, port = stranger
    assert check(loaded(tmp_path, agents(f"A: {{agent: 'm:C', port: {port}, enabled: false}}"))) == ()
    text = "security: none\nmachines: {far: {host: '${H:-203.0.113.5}', node_port: 10001}}\n"
    assert check(loaded(tmp_path, text + agents(f"A: {{agent: 'm:C', port: {port}}}"))) == ()


def test_a_node_port_that_is_taken_is_found_too(tmp_path: Path, stranger: tuple[int, int]) -> None:
    _, port = stranger
    found = loaded(tmp_path, f"machines: {{a: {{node_port: {port}}}}}\n" + agents("A: {agent: 'm:C'}"))
    assert one(check(found), "port-taken").at == "machines.a.node_port"


def test_a_connected_socket_takes_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = client.getsockname()[1]
        assert check(loaded(tmp_path, agents(f"A: {{agent: 'm:C', port: {port}}}"))) == ()


def test_a_file_that_can_not_be_read_has_nothing_to_check(tmp_path: Path) -> None:
    assert check(loaded(tmp_path, "version: [")) == ()
    assert os.path.exists(tmp_path / "fleet.yaml")


MANY_HOLDER = """
import socket, sys
taken = [socket.create_server(("127.0.0.1", 0), backlog=1) for _ in range(5)]
print(*(sock.getsockname()[1] for sock in taken), flush=True)
sys.stdin.read()
"""


def test_a_stranger_that_has_many_of_the_ports_is_one_problem(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", MANY_HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        ports = [int(port) for port in process.stdout.readline().split()]
        lines = (f"A{i}: {{agent: 'm:C', port: {port}}}" for i, port in enumerate(ports))
        problem = one(check(loaded(tmp_path, agents("\n".join(lines)))), "port-taken")
        assert f"5 ports are taken now by pid {process.pid}" in problem.found
        assert f"kill {process.pid}" in problem.fix
        assert "--port-offset" in problem.fix
    finally:
        process.communicate(b"")
