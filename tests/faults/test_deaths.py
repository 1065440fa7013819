"""kill -9 of the node, of the zygote, of both: agents keep their pids and each other, and the fleet is looked after again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from tests.faults.scratch import PATIENCE_S, Scratch, is_alive, kill

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = '''
    from __future__ import annotations
    import asyncio, os
    from agentkit import BaseAgent, CallError, rpc

    class Answers(BaseAgent):
        @rpc(idempotent=True)
        async def pid(self) -> int:
            return os.getpid()

    class Asks(BaseAgent):
        """Calls Base all the time, and remembers how that went."""
        async def run(self) -> None:
            self.asked, self.failures = 0, []
            while True:
                try:
                    await self.call("Base", "pid", timeout=2)
                except CallError as exc:
                    self.failures.append(repr(exc))
                self.asked += 1
                await asyncio.sleep(0.005)

        @rpc
        async def asks(self) -> tuple[int, list[str]]:
            return self.asked, self.failures
'''


@pytest.fixture
def fleet() -> Iterator[Scratch]:
    """Base has crashed once, so that there is a restart count to be kept; Aside was stopped by an operator."""
    with Scratch() as scratch:
        scratch.python("deaths.py", AGENTS)
        scratch.write(
            {
                "Base": {"agent": "deaths:Answers", "restart": {"delay": "10ms", "max_attempts": 10}},
                "Caller": {"agent": "deaths:Asks", "dependencies": ["Base"]},
                "Aside": {"agent": "deaths:Answers"},
            }
        )
        scratch.up()
        before = scratch.rows()
        kill(before["Base"].pid)
        scratch.wait_restarted("Base", before["Base"])
        assert scratch.run("stop", "Aside").code == 0
        yield scratch


def kill_node(fleet: Scratch) -> None:
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)


def assert_callers_go_on(fleet: Scratch, rows: dict[str, AgentRow], calls: int = 50) -> None:
    """Caller goes on calling Base; asked without any node."""
    first, _ = asks(fleet, rows)
    ends_s = time.monotonic() + PATIENCE_S
    while asks(fleet, rows)[0] < first + calls:
        assert time.monotonic() < ends_s, "it does not go on"


def asks(fleet: Scratch, rows: dict[str, AgentRow]) -> Any:
    return fleet.call_directly(rows["Caller"], "asks")


def test_agents_outlive_kill_9_of_the_node(fleet: Scratch) -> None:
    with nothing_noticed(fleet):
        kill_node(fleet)


def test_agents_outlive_kill_9_of_the_zygote(fleet: Scratch) -> None:
    with nothing_noticed(fleet):
        zygote, node = fleet.zygote_pid(), fleet.node_pid()
        kill(zygote)
        ends_s = time.monotonic() + PATIENCE_S
        while fleet.zygote_pid() == zygote:
            assert time.monotonic() < ends_s
        assert fleet.node_pid() == node


def test_agents_outlive_kill_9_of_node_and_zygote_and_the_next_up_takes_them_over(fleet: Scratch) -> None:
    with nothing_noticed(fleet) as before:
        kill(fleet.zygote_pid(), fleet.node_pid())
        assert fleet.run("status").code == 4
        assert_callers_go_on(fleet, before)
        assert fleet.up()["ready"] == 3  # it starts what an operator had stopped
        fleet.run("stop", "Aside")


@contextmanager
def nothing_noticed(fleet: Scratch) -> Iterator[dict[str, AgentRow]]:
    """What dies in the block is not noticed by any agent, and the fleet is looked after as before."""
    before = fleet.wait_phase(Phase.READY, "Base", "Caller")
    _, failures_before = asks(fleet, before)
    yield before
    after = fleet.wait_phase(Phase.READY, "Base", "Caller")
    for name in ("Base", "Caller"):
        assert (after[name].pid, after[name].incarnation) == (before[name].pid, before[name].incarnation)
        assert after[name].restarts == before[name].restarts
    assert after["Base"].restarts == 1
    assert_callers_go_on(fleet, before)
    assert asks(fleet, before)[1] == failures_before
    # what the operator stopped is stopped
    assert (after["Aside"].phase, after["Aside"].pid) == (Phase.STOPPED, None)
    # the command line sees the same
    told = {agent["name"]: agent for agent in fleet.run("status", "--json").json["agents"]}
    assert {name: told[name]["pid"] for name in told} == {name: row.pid for name, row in after.items()}
    assert told["Base"]["restarts"] == 1
    assert fleet.call("Base", "pid") == before["Base"].pid
    # and the fleet is looked after: a crashed agent comes back, on the same port
    kill(after["Base"].pid)
    again = fleet.wait_restarted("Base", after["Base"])
    assert again.restarts == 2
    assert again.endpoints == before["Base"].endpoints
    assert fleet.call("Base", "pid") == again.pid
    # nothing of it is left after `down`, though its agents had two parents
    pids = [row.pid for row in fleet.rows().values() if row.pid]
    assert fleet.run("down").code == 0
    assert not any(map(is_alive, pids))


def test_an_agent_that_dies_while_there_is_no_node_is_restarted_by_the_next(fleet: Scratch) -> None:
    before = fleet.rows()
    kill(fleet.node_pid(), before["Base"].pid)
    after = fleet.wait_restarted("Base", before["Base"])
    assert (after.restarts, after.last_exit.partition(" after")[0]) == (2, "signal SIGKILL")
    assert fleet.call("Base", "pid") == after.pid


def test_an_agent_that_dies_with_node_and_zygote_is_restarted_by_the_next_up(fleet: Scratch) -> None:
    before = fleet.rows()
    kill(fleet.zygote_pid(), fleet.node_pid(), before["Base"].pid)
    fleet.up()
    after = fleet.wait_phase(Phase.READY, "Base", "Caller")
    assert after["Base"].pid != before["Base"].pid
    assert after["Caller"].pid == before["Caller"].pid
    assert fleet.call("Base", "pid") == after["Base"].pid


@pytest.mark.soak
def test_a_node_killed_again_and_again_comes_back_each_time(fleet: Scratch, times: int) -> None:
    before = fleet.rows()
    failures_before = asks(fleet, before)[1]
    for _ in range(3 * times):
        kill_node(fleet)
    after = fleet.wait_phase(Phase.READY, "Base", "Caller")
    assert {name: row.pid for name, row in after.items()} == {name: row.pid for name, row in before.items()}
    assert asks(fleet, before)[1] == failures_before


def test_callers_of_an_agent_that_crashes_lose_the_call_under_way_and_wait_with_the_next(fleet: Scratch) -> None:
    before = fleet.wait_phase(Phase.READY, "Base", "Caller")
    _, failures_before = asks(fleet, before)
    kill(before["Base"].pid)
    fleet.wait_restarted("Base", before["Base"])
    assert_callers_go_on(fleet, before)
    failures = asks(fleet, before)[1][len(failures_before) :]
    assert len(failures) <= 1, failures
    assert all(failure.startswith("PeerLost(") for failure in failures)
