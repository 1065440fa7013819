"""Locks in a real Consul, held by one session for each machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from agentkit.directory.consul import ConsulClient
from startup.node.leadership.lockkeeper import LockKeeper
from tests.consul.fixtures import consul_server
from tests.consul.server import Server
from tests.faults.consul_pair import eventually

__all__ = ["consul_server"]
pytestmark = [pytest.mark.process, pytest.mark.slow]

PREFIX = "agentkit/c/leader/"
KEY = f"/v1/kv/{PREFIX}x"


class Machine:
    """One machine's keeper, and what it was told."""

    def __init__(self, server: Server, name: str, **keys: object) -> None:
        self.got: list[int] = []
        self.lost: list[str] = []
        self.keeper = LockKeeper(
            ConsulClient(server.address),
            ConsulClient(server.address),
            PREFIX,
            name,
            ttl_s=10.0,
            on_got=lambda _, fence: self.got.append(fence),
            on_lost=lambda _, why: self.lost.append(why),
            on_renewed=lambda: None,
            **keys,  # type: ignore[arg-type]
        )
        self.keeper.start()

    def close(self, *, lets_go: bool = True) -> None:
        self.keeper.close(lets_go=lets_go)
        self.keeper.join(10.0)


Maker = Callable[..., Machine]


@pytest.fixture
def machine(consul_server: Server) -> Iterator[Maker]:
    made: list[Machine] = []

    def make(name: str, **keys: object) -> Machine:
        made.append(Machine(consul_server, name, **keys))
        return made[-1]

    yield make
    for it in made:
        it.close()


def session_of(server: Server) -> str:
    (item,) = server.get(KEY)
    return str(item.get("Session", ""))


def test_one_gets_the_lock_and_the_next_when_it_is_let_go_with_a_greater_fence(machine: Maker) -> None:
    a, b = machine("a"), machine("b")
    a.keeper.want("x")
    eventually(lambda: a.got)
    b.keeper.want("x")
    eventually(lambda: "x" in b.keeper.fences)
    assert not b.got
    a.keeper.release("x")
    eventually(lambda: b.got)
    assert b.got[0] > a.got[0]
    assert not a.lost


def test_the_session_hangs_on_no_health_check_and_is_closed_when_nobody_needs_it(
    machine: Maker, consul_server: Server
) -> None:
    a = machine("a")
    a.keeper.want("x")
    eventually(lambda: a.got)
    (session,) = consul_server.get("/v1/session/list")
    assert not session.get("Checks")
    assert not session.get("NodeChecks")
    assert not session.get("ServiceChecks")
    a.keeper.release("x")
    eventually(lambda: not consul_server.get("/v1/session/list"))


@pytest.mark.parametrize("how", ["delete", "destroy"])
def test_a_lock_that_somebody_takes_away_in_consul_is_lost(machine: Maker, consul_server: Server, how: str) -> None:
    a = machine("a")
    a.keeper.want("x")
    eventually(lambda: a.got and a.keeper._watching.calls)
    if how == "delete":
        consul_server.ask("DELETE", KEY)
    else:
        consul_server.put(f"/v1/session/destroy/{session_of(consul_server)}")
    eventually(lambda: a.lost)


def test_the_next_node_goes_on_with_the_session_and_lets_go_what_nobody_leads_any_more(
    machine: Maker, consul_server: Server
) -> None:
    a = machine("a")
    for name in ("x", "y"):
        a.keeper.want(name)
    eventually(lambda: len(a.got) == 2)
    session, fence = a.keeper.session, a.keeper._held["x"].fence
    a.close(lets_go=False)
    again, b = machine("a", session=session, held={"x": fence}), machine("b")
    for name in ("x", "y"):
        b.keeper.want(name)
    eventually(lambda: b.got)
    assert session_of(consul_server) == session
    assert len(b.got) == 1
    assert not again.lost
    again.keeper.release("x")
    eventually(lambda: len(b.got) == 2)


def test_a_consul_that_counts_from_the_beginning_again_gets_fences_that_go_on(
    machine: Maker, consul_server: Server
) -> None:
    a = machine("a", held={"x": 1_000_000}, session="7b3a2f10-1111-2222-3333-444455556666")
    eventually(lambda: a.lost)  # nobody knows that session
    consul_server.put(KEY, json.dumps({"machine": "b", "base": 0}).encode())  # as somebody left it who knew nothing
    a.keeper.want("x")
    eventually(lambda: a.got)
    assert a.got[0] > 1_000_000
    b = machine("b")
    a.keeper.release("x")
    b.keeper.want("x")
    eventually(lambda: b.got)
    assert b.got[0] > a.got[0]
