"""One leader among replicas: whatever dies, another leads soon, and never are there two."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from tests.faults.led import leads, never_two, replica, until
from tests.startup.node.cluster import Nodes, kill, nodes

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
