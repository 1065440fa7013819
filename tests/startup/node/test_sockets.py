"""The listening sockets of agents change hands when their ports do, and nobody who waits in one is lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agentkit.names import AgentId
from startup.node.listeners import PortUnavailable, open_listener
from startup.node.sockets import AgentSockets
from tests.startup.cli.launched import free_port

A, B = AgentId.parse("m/A"), AgentId.parse("m/B")
HOST = "127.0.0.1"


class Fleet:
    """What each agent is to listen on, and the sockets."""

    def __init__(self) -> None:
        self.ports: dict[AgentId, int] = {}
        self.sockets = AgentSockets(self._heir)

    def _heir(self, host: str, port: int) -> tuple[AgentId, str] | None:
        return next(((id, "inbox-local") for id, its in self.ports.items() if (host, port) == (HOST, its)), None)

    def open(self, id: AgentId) -> socket.socket:
        (fd,) = self.sockets.open(id, {"inbox-local": (HOST, self.ports[id])}).values()
        return socket.socket(fileno=socket.dup(fd))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    found = Fleet()
    yield found
    found.sockets.close_all()


def test_an_exchange_needs_no_bind_so_it_works_while_others_hold_dups(fleet: Fleet) -> None:
    one, two = free_port(), free_port()
    fleet.ports = {A: one, B: two}
    with fleet.open(A), fleet.open(B), socket.create_connection((HOST, two)):
        fleet.ports = {A: two, B: one}
        with fleet.open(A) as of_a, fleet.open(B) as of_b:
            assert [sock.getsockname()[1] for sock in (of_a, of_b)] == [two, one]
            of_a.setblocking(True)
            of_a.accept()[0].close()  # who waited is served by the port's new owner


def test_a_socket_of_somebody_who_does_not_need_it_is_taken(fleet: Fleet) -> None:
    fleet.ports = {B: free_port()}
    with fleet.open(B):
        fleet.ports = {A: fleet.ports[B]}
        with fleet.open(A) as of_a:
            assert of_a.getsockname() == (HOST, fleet.ports[A])
        assert not fleet.sockets.has(B)


def test_what_is_closed_goes_to_whom_it_is_for_now(fleet: Fleet) -> None:
    fleet.ports = {B: free_port()}
    with fleet.open(B):
        fleet.ports = {A: fleet.ports[B]}
        fleet.sockets.close(B)
        assert fleet.sockets.all().keys() == {A}


def test_what_nobody_is_to_have_is_closed_and_a_strangers_port_is_refused(fleet: Fleet) -> None:
    fleet.ports = {A: free_port()}
    fleet.open(A).close()
    fleet.sockets.close(A)
    with open_listener(HOST, fleet.ports[A]), pytest.raises(PortUnavailable):
        fleet.open(A)
