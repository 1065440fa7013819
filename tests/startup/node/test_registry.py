"""Nodes and a real Consul: who stands there, since when, and who is told of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from startup.plan.phase import Phase
from startup.spec.fleet import AgentSpec, AgentTarget, ConsulAccess
from tests.consul.fixtures import consul_server
from tests.consul.server import Server
from tests.faults.consul_pair import ECHO
from tests.startup.node.cluster import PATIENCE_S, Nodes, nodes
from tests.startup.plan.builders import agent

__all__ = ["consul_server"]
pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def fleet() -> Iterator[Nodes]:
    with nodes() as found:
        yield found


def up(fleet: Nodes, server: Server, *agents: AgentSpec, **keys: Any) -> None:
    fleet.up(*agents, registry="consul", consul=ConsulAccess(address=server.address, **keys))


def eventually(reached: Callable[[], object]) -> None:
    """Consul tells nobody of us: it is asked until it is so."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline_s, "not reached"
        time.sleep(0.05)


def standing(fleet: Nodes, server: Server) -> dict[str, str]:
    return server.statuses(f"agentkit-{fleet.cluster}")


def test_agents_stand_in_consul_while_they_run_and_only_then(fleet: Nodes, consul_server: Server) -> None:
    up(fleet, consul_server, fleet.program("a", port=21001), fleet.program("b", port=21002))
    eventually(lambda: standing(fleet, consul_server) == {"m/a": "passing", "m/b": "passing"})
    service = consul_server.services()["m/a"]
    assert (service["Address"], service["Port"]) == ("127.0.0.1", 21001)
    assert {"agent-a", "machine-m"} <= set(service["Tags"])
    up(fleet, consul_server, fleet.program("a", port=21001))
    eventually(lambda: standing(fleet, consul_server) == {"m/a": "passing"})
    fleet.down()
    assert standing(fleet, consul_server) == {}
    fleet.boot()


def test_an_agent_is_taken_out_before_it_is_told_to_go(fleet: Nodes, consul_server: Server) -> None:
    asks = (
        "import urllib.request, json, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (stop.append(1), print(json.loads(urllib.request.urlopen("
        f"'http://{consul_server.address}/v1/agent/services').read()).keys(), flush=True)))"
    )
    up(fleet, consul_server, fleet.program("a", port=21001, first=asks), fleet.program("b", port=21002))
    eventually(lambda: len(standing(fleet, consul_server)) == 2)
    up(fleet, consul_server, fleet.program("b", port=21002))
    fleet.wait(lambda rows: "m/a" not in rows or rows["m/a"].phase is Phase.STOPPED)
    assert "dict_keys(['m/b'])" in fleet.log("m/a")


def test_a_new_life_of_an_agent_stands_there_as_the_new_one(fleet: Nodes, consul_server: Server) -> None:
    up(fleet, consul_server, fleet.program("a", port=21001))
    eventually(lambda: standing(fleet, consul_server) == {"m/a": "passing"})
    before = consul_server.services()["m/a"]["Meta"]["incarnation"]
    fleet.ask("m", "restart", agents=["a"])
    eventually(
        lambda: consul_server.services().get("m/a", {"Meta": {"incarnation": before}})["Meta"]["incarnation"] != before
    )
    assert standing(fleet, consul_server) == {"m/a": "passing"}


def test_an_agent_that_is_replaced_while_it_serves_never_leaves(fleet: Nodes, consul_server: Server) -> None:
    (fleet.folder / "echo.py").write_text(ECHO)
    up(fleet, consul_server, agent("Echo", target=AgentTarget(module="echo", cls="Echo"), port=21900))
    eventually(lambda: standing(fleet, consul_server) == {"m/Echo": "passing"})
    first = fleet.row("Echo").incarnation
    fleet.ask("m", "restart", agents=["Echo"])
    seen = []
    eventually(
        lambda: (
            seen.append(standing(fleet, consul_server)),
            consul_server.services()["m/Echo"]["Meta"]["incarnation"] != str(first),
        )[1]
    )
    assert all(statuses == {"m/Echo": "passing"} for statuses in seen)


def test_consul_itself_asks_whether_an_agent_is_ready_where_the_fleet_wants_that(
    fleet: Nodes, consul_server: Server
) -> None:
    (fleet.folder / "echo.py").write_text(ECHO)
    echo = agent("Echo", target=AgentTarget(module="echo", cls="Echo"), port=21900, health_port=21901)
    up(fleet, consul_server, echo, ready_check_s=1.0)

    def checks() -> dict[str, dict[str, str]]:
        return dict(consul_server.get("/v1/agent/checks"))

    eventually(lambda: "200 OK" in checks().get("ready:m/Echo", {}).get("Output", ""))
    assert set(checks()) == {"ready:m/Echo", "service:m/Echo"}
    pid = fleet.row("Echo").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: standing(fleet, consul_server) == {"m/Echo": "critical"})
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: standing(fleet, consul_server) == {"m/Echo": "passing"})


@pytest.mark.soak
def test_what_a_crashed_machine_had_turns_critical_within_its_ttl_and_is_gone_two_minutes_later(
    fleet: Nodes, consul_server: Server, times: int
) -> None:
    up(fleet, consul_server, fleet.program("a", port=21001))
    eventually(lambda: standing(fleet, consul_server) == {"m/a": "passing"})
    fleet.kill_all()
    eventually(lambda: standing(fleet, consul_server) == {"m/a": "critical"})
    if times > 1:  # Consul waits a minute at least, and looks every 30 s
        for _ in range(4):
            if standing(fleet, consul_server):
                with suppress(AssertionError):
                    eventually(lambda: standing(fleet, consul_server) == {})
        assert standing(fleet, consul_server) == {}
    fleet.boot()


def test_entries_outlive_the_death_of_a_node_and_are_fed_by_the_next(fleet: Nodes, consul_server: Server) -> None:
    from tests.startup.node.cluster import kill

    up(fleet, consul_server, fleet.program("a", port=21001))
    eventually(lambda: standing(fleet, consul_server) == {"m/a": "passing"})
    index = consul_server.get(f"/v1/health/service/agentkit-{fleet.cluster}")[0]["Service"]["ModifyIndex"]
    kill(fleet.node_pid())
    fleet.ask("m")
    eventually(lambda: (fleet.ask("m", "registry") or {}).get("registered") == 1)
    again = consul_server.get(f"/v1/health/service/agentkit-{fleet.cluster}")[0]["Service"]["ModifyIndex"]
    assert again == index


def test_an_agent_that_nobody_but_consul_knows_is_told_and_is_gone_when_it_does_not_pass(
    fleet: Nodes, consul_server: Server
) -> None:
    from tests.agentkit.directory.test_entries import entry

    up(fleet, consul_server, fleet.program("a", port=21001))
    far = entry("far/x", cluster=fleet.cluster, endpoints={"inbox": "tcp://10.9.9.9:1"})
    consul_server.put("/v1/agent/service/register", far.definition(15.0, None))
    rows = fleet.wait(lambda rows: "far/x" in rows)
    assert rows["far/x"].phase is Phase.READY
    assert rows["far/x"].endpoints == {"inbox": "tcp://10.9.9.9:1"}
    consul_server.put("/v1/agent/check/fail/service:far/x")
    fleet.wait(lambda rows: rows.get("far/x") is not None and rows["far/x"].phase is Phase.UNREACHABLE)


def test_a_fleet_that_leaves_consul_takes_its_agents_along(fleet: Nodes, consul_server: Server) -> None:
    up(fleet, consul_server, fleet.program("a", port=21001))
    eventually(lambda: standing(fleet, consul_server) == {"m/a": "passing"})
    fleet.up(fleet.program("a", port=21001))
    eventually(lambda: standing(fleet, consul_server) == {})
    assert fleet.row("a").phase is Phase.READY
