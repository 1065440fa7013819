"""What a fleet whose directory is Consul survives. Its two machines know each other through Consul alone, which is the worst case."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentkit.directory.consul import ConsulClient
from agentkit.directory.registering import Wanted
from startup.node.registry.registrar import Registrar
from startup.plan.phase import Phase
from startup.spec.fleet import ConsulAccess, SecretRef
from tests.agentkit.directory.test_entries import entry
from tests.consul.fixtures import consul_cluster, consul_server
from tests.consul.proxy import Proxy
from tests.consul.server import Server
from tests.faults.consul_pair import Apart, Calling, eventually, pair

__all__ = ["consul_cluster", "consul_server"]
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]

Pair = tuple[Apart, Apart]


@pytest.fixture
def apart() -> Iterator[Pair]:
    with pair() as found:
        yield found


@pytest.fixture
def line(consul_server: Server) -> Iterator[Proxy]:
    proxy = Proxy(consul_server.http)
    proxy.start()
    yield proxy
    proxy.close()


def passing(server: Server, cluster: str) -> set[str]:
    return {id for id, status in server.statuses(f"agentkit-{cluster}").items() if status == "passing"}


def begun(apart: Pair, address: str, **keys: object) -> None:
    """`Echo` runs on b, and a has seen it."""
    a, b = apart
    access = ConsulAccess(address=address, **keys)  # type: ignore[arg-type]
    a.begin(access)
    b.begin(access, b.echo())
    a.wait(lambda rows: "b/Echo" in rows and rows["b/Echo"].phase is Phase.READY)


@pytest.mark.soak
def test_consul_that_comes_back_empty_has_everybody_again_without_a_storm(
    apart: Pair, consul_server: Server, line: Proxy, times: int
) -> None:
    a, b = apart
    begun(apart, line.address)
    access = ConsulAccess(address=line.address)
    b.begin(access, b.echo(), *(b.program(f"b/p{number}", port=22000 + number) for number in range(83)))
    eventually(lambda: len(passing(consul_server, a.cluster)) == 84)
    with Calling(a):
        consul_server.stop()
        time.sleep(3.0 * times)  # 60 s in `make soak`
        before = len(line.seen("service/register"))
        line.most_at_once.clear()
        consul_server.start()
        eventually(lambda: len(passing(consul_server, a.cluster)) == 84)
    again = line.seen("service/register")[before:]
    assert line.most_at_once["PUT"] == 1
    assert again[-1].at_s - again[0].at_s > 1.0  # spread, and each once
    assert len(again) == 84


def test_the_death_of_the_leader_among_three_costs_no_call(apart: Pair, consul_cluster: list[Server]) -> None:
    a, b = apart
    leader = consul_cluster[0].wait_leader()
    (dying,) = (server for server in consul_cluster if leader == f"127.0.0.1:{server.rpc}")
    ours, other = (server for server in consul_cluster if server is not dying)
    begun(apart, ours.address)
    with Calling(a):
        dying.stop()
        eventually(lambda: other.get("/v1/status/leader") not in ("", leader))
        access = ConsulAccess(address=ours.address)
        b.begin(access, b.echo(), b.program("b/late", port=22000))
        a.wait(lambda rows: "b/late" in rows and rows["b/late"].phase is Phase.READY)


def test_a_revoked_token_costs_no_call_and_a_new_one_needs_no_restart(apart: Pair, tmp_path: Path) -> None:
    a, b = apart
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": "root", "agent": "root"}}
    server = Server("closed", settings={"acl": acl})
    server.token = "root"
    rules = 'service_prefix "agentkit-" { policy = "write" } node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }'
    try:
        server.start()
        eventually(lambda: "ID" in server.put("/v1/acl/policy", {"Name": "agentkit", "Rules": rules}))
        first = server.put("/v1/acl/token", {"Policies": [{"Name": "agentkit"}]})
        secret = tmp_path / "token"
        secret.write_text(first["SecretID"])
        begun(apart, server.address, token=SecretRef(file=str(secret)))
        with Calling(a):
            server.ask("DELETE", f"/v1/acl/token/{first['AccessorID']}")
            eventually(lambda: "403" in a.registry()["problem"] or "ACL not found" in a.registry()["problem"])
            access = ConsulAccess(address=server.address, token=SecretRef(file=str(secret)))
            b.begin(access, b.echo(), b.program("b/late", port=22000))
            secret.write_text(server.put("/v1/acl/token", {"Policies": [{"Name": "agentkit"}]})["SecretID"])
            a.wait(lambda rows: "b/late" in rows and rows["b/late"].phase is Phase.READY)
            eventually(lambda: not a.registry()["problem"])
    finally:
        server.close()


@pytest.mark.soak
def test_slow_answers_of_consul_cost_no_call(apart: Pair, consul_server: Server, line: Proxy, times: int) -> None:
    a, b = apart
    begun(apart, line.address)
    with Calling(a):
        line.delay_s = 2.5 if times == 1 else 10.0  # more than 2 s is slow; 10 s in `make soak`
        b.begin(ConsulAccess(address=line.address), b.echo(), b.program("b/late", port=22000))
        a.wait(lambda rows: "b/late" in rows and rows["b/late"].phase is Phase.READY)
        if times > 1:
            # six agents can't be fed in 15 s at 10 s a call: their entries turn critical, and nobody is taken for gone
            six = (b.program(f"b/p{number}", port=22001 + number) for number in range(4))
            b.begin(ConsulAccess(address=line.address), *b.agents, *six)
            eventually(lambda: "b/Echo" not in passing(consul_server, a.cluster))
            time.sleep(20.0)
            assert a.rows("a")["b/Echo"].phase is Phase.READY
        line.delay_s = 0.0
        eventually(lambda: passing(consul_server, a.cluster) >= {"b/Echo", "b/late"})


def test_an_index_that_goes_back_is_noticed_and_what_is_new_is_seen(apart: Pair, consul_server: Server) -> None:
    a, b = apart
    for number in range(50):  # the index is high before the agents come
        consul_server.put(f"/v1/kv/x{number}", b"1")
    begun(apart, consul_server.address)
    with Calling(a):
        consul_server.stop()
        consul_server.start()
        b.begin(ConsulAccess(address=consul_server.address), b.echo(), b.program("b/late", port=22000))
        a.wait(lambda rows: "b/late" in rows and rows["b/late"].phase is Phase.READY)


def test_a_service_of_our_name_that_somebody_else_registered_is_not_called(apart: Pair, consul_server: Server) -> None:
    a, b = apart
    begun(apart, consul_server.address)
    with Calling(a):
        name = f"agentkit-{a.cluster}"
        for theirs in (
            {"ID": "b/Fake", "Name": name, "Port": 1},
            {"ID": "x", "Name": name, "Port": 1, "Meta": {"agentkit": "1", "id": "b/Echo", "incarnation": "999", "inbox": "tcp://1.1.1.1:1"}},
            {"ID": "b/Mad", "Name": name, "Port": 1, "Meta": {"agentkit": "1", "id": "b/Mad", "incarnation": "-", "inbox": "x"}},
        ):  # fmt: skip
            consul_server.put("/v1/agent/service/register", theirs)
        eventually(lambda: a.registry()["strangers"] == 3)
        assert set(a.rows("a")) == {"b/Echo"}
        b.begin(ConsulAccess(address=consul_server.address), b.echo(), b.program("b/Fake", port=22000))
        b.wait(lambda rows: "b/Fake" in rows and rows["b/Fake"].phase is Phase.READY)
        eventually(lambda: "somebody else" in b.node_log())
        assert consul_server.services()["b/Fake"]["Meta"] == {}  # not overwritten


def test_a_thousand_registrations_are_made_fed_and_seen(apart: Pair, consul_server: Server) -> None:
    a, _ = apart
    begun(apart, consul_server.address)
    many = {entry(f"far/x{number}").id: entry(f"far/x{number}", cluster=a.cluster) for number in range(1000)}
    registrar = Registrar(ConsulClient(consul_server.address), a.cluster, "far")
    registrar.start()
    with Calling(a):
        registrar.want({id: Wanted(found, "passing") for id, found in many.items()})
        eventually(lambda: len(passing(consul_server, a.cluster)) == 1001)
        a.wait(lambda rows: len(rows) == 1001)
        registrar.close(deregister=True)
        registrar.join(60)
        eventually(lambda: passing(consul_server, a.cluster) == {"b/Echo"})
        a.wait(lambda rows: not any(row.phase is Phase.READY for id, row in rows.items() if id.startswith("far/")))
