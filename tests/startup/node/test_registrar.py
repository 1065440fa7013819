"""The thread that keeps agents registered, where there is no Consul, or one that hangs."""

from __future__ import annotations

import socket

import pytest

from agentkit.directory.consul import ConsulClient
from agentkit.directory.registering import Wanted
from startup.node.registry.registrar import Registrar
from tests.agentkit.directory.test_entries import entry
from tests.consul.fixtures import consul_server
from tests.consul.server import Server
from tests.faults.consul_pair import eventually

__all__ = ["consul_server"]

A = entry("m/a")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_nobody_who_leaves_waits_for_a_consul_that_is_away() -> None:
    registrar = Registrar(ConsulClient(f"127.0.0.1:{free_port()}"), "c", "m")
    registrar.start()
    registrar.want({A.id: Wanted(A, "passing")})
    eventually(lambda: "refused" in registrar.problem)
    assert registrar.leave(A.id).done()
    registrar.close(deregister=True)
    registrar.join(5.0)


def test_a_consul_that_hangs_is_cut_off_at_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        registrar = Registrar(ConsulClient(f"127.0.0.1:{mute.getsockname()[1]}"), "c", "m")
        registrar.start()
        registrar.want({A.id: Wanted(A, "passing")})
        peer, _ = mute.accept()
        registrar.close(deregister=True)
        registrar.join(0.2)
        peer.close()


@pytest.mark.process
def test_what_another_machine_registered_is_left_alone(consul_server: Server) -> None:
    other = entry("n/b")
    consul_server.put("/v1/agent/service/register", other.definition(15.0, None))
    registrar = Registrar(ConsulClient(consul_server.address), "c", "m")
    registrar.start()
    registrar.want({A.id: Wanted(A, "passing")})
    eventually(lambda: set(consul_server.services()) == {"m/a", "n/b"})
    registrar.close(deregister=True)
    registrar.join(10.0)
    assert set(consul_server.services()) == {"n/b"}


@pytest.mark.process
def test_an_agent_that_fails_its_checks_is_warned_of_and_not_deregistered(consul_server: Server) -> None:
    registrar = Registrar(ConsulClient(consul_server.address), "c", "m")
    registrar.start()
    registrar.want({A.id: Wanted(A, "passing")})
    eventually(lambda: consul_server.statuses("agentkit-c") == {"m/a": "passing"})
    registrar.want({A.id: Wanted(A, "warning")})
    eventually(lambda: consul_server.statuses("agentkit-c") == {"m/a": "warning"})
    registrar.want({A.id: Wanted(A, "passing")})
    eventually(lambda: consul_server.statuses("agentkit-c") == {"m/a": "passing"})
    registrar.close(deregister=False)
    registrar.join(10.0)
    assert set(consul_server.services()) == {"m/a"}
