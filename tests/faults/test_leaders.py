"""One leader among replicas: whatever dies, another leads soon, and never are there two."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from startup.spec.fleet import ConsulAccess
from tests.consul.fixtures import consul_server
from tests.consul.server import Server
from tests.faults.consul_pair import Apart, pair
from tests.faults.led import is_there, leads, lines, never_two, replica, until
from tests.startup.node.cluster import Nodes, kill, nodes

__all__ = ["consul_server"]
pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def three() -> Iterator[tuple[Nodes, Path]]:
    """Three replicas on one machine, of which one leads."""
    with nodes("m") as cluster:
        log = cluster.folder / "led"
        cluster.up(*(replica(cluster.folder, f"m/{name}", log, 21700 + n) for n, name in enumerate("ABC")))
        yield cluster, log


def test_a_leader_that_is_killed_is_followed_by_another(three: tuple[Nodes, Path]) -> None:
    cluster, log = three
    first = leads(log)
    os.kill(first.pid, signal.SIGKILL)
    second = leads(log, other_than=first.pid)
    os.kill(second.pid, signal.SIGSTOP)  # it hangs, and might go on at any time: nobody else leads
    try:
        assert cluster.ask(operation="leaders")["leaders"]["indexer"]["fence"] == second.fence
    finally:
        os.kill(second.pid, signal.SIGKILL)
    leads(log, other_than=second.pid)
    assert len(never_two(log)) >= 3


@pytest.mark.parametrize("way", ["overlap", "handover"])
def test_a_roll_of_the_leader_never_has_two(three: tuple[Nodes, Path], way: str) -> None:
    cluster, log = three
    leads(log)
    cluster.up(*(replica(cluster.folder, f"m/{name}", log, 21700 + n, roll=way) for n, name in enumerate("ABC")))
    before = {id: row.pid for id, row in cluster.wait_phase(Phase.READY).items()}
    cluster.ask(operation="restart", agents=["A", "B", "C"])

    def all_new(rows: dict[str, AgentRow]) -> bool:
        return all(row.phase is Phase.READY and row.pid != before[id] for id, row in rows.items())

    new = cluster.wait(all_new)
    until(lambda: leads(log).pid in {row.pid for row in new.values()})
    never_two(log)


def test_a_leader_leads_on_while_its_node_is_dead_and_the_next_node_knows_it(three: tuple[Nodes, Path]) -> None:
    cluster, log = three
    first = leads(log)
    pid = cluster.node_pid()
    kill(pid)
    assert leads(log) == first
    until(lambda: cluster.node_pid() != pid)
    assert cluster.ask(operation="leaders")["leaders"]["indexer"]["fence"] == first.fence
    assert leads(log) == first
    os.kill(first.pid, signal.SIGKILL)
    leads(log, other_than=first.pid)
    never_two(log)


def test_a_leader_that_dies_with_its_node_is_followed_by_another(three: tuple[Nodes, Path]) -> None:
    cluster, log = three
    first = leads(log)
    pid = cluster.node_pid()
    os.kill(pid, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    kill(pid)
    leads(log, other_than=first.pid)
    never_two(log)


def test_with_the_mesh_each_machine_has_a_leader_and_the_log_says_so() -> None:
    with nodes("m", "n") as cluster:
        logs = {machine: cluster.folder / machine for machine in "mn"}
        cluster.up(
            *(replica(cluster.folder, f"{machine}/A", logs[machine], 21700 + n) for n, machine in enumerate("mn"))
        )
        assert leads(logs["m"]).pid != leads(logs["n"]).pid
        assert "leader.of_this_machine_only" in cluster.node_log("m")


@pytest.fixture
def apart(consul_server: Server) -> Iterator[tuple[Apart, Apart, Path]]:
    """Two machines that nothing but Consul connects: two replicas on one, one on the other."""
    with pair() as (a, b):
        log = a.folder / "led"
        access = ConsulAccess(address=consul_server.address, leader_ttl_s=10.0)
        a.begin(access, *(replica(a.folder, f"a/{name}", log, 21700 + n) for n, name in enumerate("AB")))
        b.begin(access, replica(b.folder, "b/C", log, 21702))
        line = leads(log)
        until(lambda: all(it.ask(operation="leaders")["fences"].get("indexer", 0) >= line.fence for it in (a, b)))
        yield a, b, log


def leader(nodes: Apart) -> dict[str, object] | None:
    found = nodes.ask(operation="leaders")["leaders"].get("indexer")
    return None if found is None else dict(found)


def test_of_two_machines_one_leads_and_whatever_is_killed_another_follows(apart: tuple[Apart, Apart, Path]) -> None:
    a, b, log = apart
    for _ in range(4):
        line = leads(log)
        os.kill(line.pid, signal.SIGKILL)
        leads(log, other_than=line.pid)
    ours = a if leader(a) else b
    line, pid = leads(log), ours.node_pid()
    kill(pid)
    until(lambda: ours.node_pid() != pid)
    assert leads(log) == line  # its node was dead for less than the TTL
    until(lambda: float(str((leader(ours) or {"until_s": 0})["until_s"])) > 0)  # and is renewed by the next one
    assert len(never_two(log)) >= 5


def test_consul_that_is_away_for_longer_than_the_ttl_and_comes_back_with_nothing_never_has_two(
    apart: tuple[Apart, Apart, Path], consul_server: Server
) -> None:
    a, b, log = apart
    last = leads(log)
    consul_server.stop()
    until(lambda: leader(a) is None and leader(b) is None)  # it has given up, by its own clock
    until(lambda: _is_quiet(log))
    assert is_there(last.pid)
    consul_server.start()
    assert leads(log).fence > last.fence
    never_two(log)


def _is_quiet(log: Path) -> bool:
    size = log.stat().st_size
    threading.Event().wait(0.2)
    return log.stat().st_size == size


def test_the_leader_of_a_machine_that_is_gone_is_followed_when_its_session_has_ended(
    apart: tuple[Apart, Apart, Path],
) -> None:
    a, b, log = apart
    ours, other = (a, b) if leader(a) else (b, a)
    last = leads(log)
    pids = ours.pids()
    for pid in sorted(pids, key=lambda pid: "agent" in pids[pid].split()[1]):  # node and zygote first
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: leader(other) is not None)
    leads(log, other_than=last.pid)
    assert len({line.pid for line in lines(log)} & set(pids)) == 1
    never_two(log)
