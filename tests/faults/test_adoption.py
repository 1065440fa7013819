"""What a new node knows of the processes of the one before: everything that was known of them, and which are still theirs."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple
from typing import Any

import pytest

from startup.node import procinfo
from startup.node.adoption import Identity
from startup.plan.phase import Health, Phase
from startup.plan.row import AgentRow
from tests.faults.scratch import Scratch, is_alive, kill, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = """
    from __future__ import annotations
    import os
    from agentkit import BaseAgent, health_check

    class Ails(BaseAgent):
        @health_check(interval="100ms")
        async def disk(self) -> None:
            if os.path.exists("full"):
                raise OSError("disk is full")
"""

KEPT = ("Ails", "Brittle", "Program")


def kill_node(fleet: Scratch) -> None:
    before = fleet.node_pid()
    kill(before)
    fleet.wait_for_another_node(before)


def kill_zygote(fleet: Scratch) -> None:
    before = fleet.zygote_pid()
    kill(before)
    until(lambda: fleet.zygote_pid() != before)


def kill_both(fleet: Scratch) -> None:
    kill(fleet.zygote_pid(), fleet.node_pid())
    fleet.up(*KEPT)


@pytest.fixture
def fleet() -> Iterator[Scratch]:
    """Ails is not well, Brittle has crashed twice and may once more, Program is no agent and has cleared its environment."""
    with Scratch() as scratch:
        scratch.python("ailing.py", AGENTS)
        budget = {"delay": "10ms", "max_attempts": 3, "window": "10m", "retry_failed_after": "0s"}
        sleeps = {"command": ["/usr/bin/env", "-i", "/bin/sleep", "1000"], "ready": {"after": "10ms"}}
        scratch.write(
            {
                "Ails": {"agent": "ailing:Ails"},
                "Brittle": {"restart": budget},
                "Program": sleeps,
                "Stopped": {},
            }
        )
        scratch.up()
        for _ in range(2):
            row = scratch.rows()["Brittle"]
            kill(row.pid)
            scratch.wait_restarted("Brittle", row)
        assert scratch.run("stop", "Stopped").code == 0
        (scratch.folder / "full").touch()
        scratch.wait(lambda rows: rows["Ails"].health is Health.FAILING)
        yield scratch


def known(rows: Mapping[str, AgentRow]) -> dict[str, Any]:
    """What operators see of each, but how often a check has failed. Times to a second: each node reads the wall clock anew."""
    return {
        name: (
            (row.phase, row.pid, row.incarnation, row.restarts, row.last_exit, row.health, row.endpoints),
            re.sub("[0-9]+ times", "some times", row.reason),
            [at and round(at) for at in astuple(row.stamps)],
        )
        for name, row in rows.items()
    }


@pytest.mark.parametrize("die", [kill_node, kill_zygote, kill_both])
def test_everything_that_was_known_of_a_process_is_known_after_node_or_zygote_or_both_have_died(
    fleet: Scratch, die: Callable[[Scratch], None]
) -> None:
    before = fleet.rows()
    assert before["Brittle"].restarts == 2
    die(fleet)
    after = fleet.wait(lambda rows: all(rows[name].phase is Phase.READY for name in KEPT))
    told, were = known(after), known(before)
    for name in KEPT:
        (*facts, at), (*old, was) = told[name], were[name]
        assert facts == old
        assert all(abs((now or 0) - (then or 0)) <= 1 for now, then in zip(at, was, strict=True)), name
    assert after["Stopped"].phase is Phase.STOPPED
    # what it may still spend, too: Brittle fails once more within its window and is restarted, then not again
    kill(after["Brittle"].pid)
    again = fleet.wait_restarted("Brittle", after["Brittle"])
    assert again.restarts == 3
    kill(again.pid)
    fleet.wait_phase(Phase.FAILED, "Brittle")
    # and a program's end is seen, whoever its parent is
    kill(after["Program"].pid)
    fleet.wait_restarted("Program", after["Program"])


def test_ports_that_nobody_held_are_bound_again_and_told_of(fleet: Scratch) -> None:
    before = fleet.rows()
    assert fleet.ask("status")["node"]["found"] is None
    kill(fleet.zygote_pid(), fleet.node_pid(), before["Brittle"].pid)
    fleet.up(*KEPT)
    after = fleet.wait_phase(Phase.READY, *KEPT)
    assert after["Brittle"].endpoints == before["Brittle"].endpoints
    assert (after["Ails"].pid, after["Program"].pid) == (before["Ails"].pid, before["Program"].pid)
    found = fleet.ask("status")["node"]["found"]
    assert (found["outlived"], found["ended"], found["unheld"]) == (2, 1, ["m/Brittle"])
    told = fleet.run("node", "status")
    assert "nobody held the ports of m/Brittle until this node bound them again" in told.out


def test_a_pid_that_is_another_process_by_now_is_not_taken_for_the_old_one() -> None:
    marks = {"AGENTKIT_INCARNATION": "7", "AGENTKIT_NODE": "/here"}
    with subprocess.Popen(["/bin/sleep", "1000"], env=marks) as process:
        try:
            until(lambda: procinfo.environ(process.pid) == marks)  # its exec is over
            began = procinfo.start_ticks(process.pid)
            assert began is not None
            same = Identity("/here", {7: began}).still_there(process.pid, 7)
            assert same is not None
            os.close(same)
            assert Identity("/here", {7: began - 1}).still_there(process.pid, 7) is None
            by_marks = Identity("/here", {}).still_there(process.pid, 7)
            assert by_marks is not None
            os.close(by_marks)
            assert Identity("/elsewhere", {}).still_there(process.pid, 7) is None
        finally:
            process.kill()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            # it has ended and is not reaped: its pid is taken, nothing of it runs
            assert not is_alive(process.pid)
            assert Identity("/here", {7: began or 0}).still_there(process.pid, 7) is None
