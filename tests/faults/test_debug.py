"""`agentkit debug`: a running agent is looked into and goes on; one that is stuck still says where."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

BUSY = """
from __future__ import annotations
import asyncio, os, time
from agentkit import BaseAgent, rpc

class Thing:
    def __init__(self, text):
        self.text = text

class Busy(BaseAgent):
    async def on_start(self):
        self.things = []
        while os.path.exists("hold"):
            time.sleep(0.01)

    async def run(self):
        while True:
            self.things.append(Thing("x" * 1000))
            await asyncio.sleep(0.001)

    @rpc(timeout="60s")
    async def wait_for_file(self, name: str) -> str:
        while not os.path.exists(name):
            await asyncio.sleep(0.01)
        return "done"

    @rpc(timeout="60s")
    async def hang_until_file(self, name: str) -> str:
        open("hangs", "w").close()
        while not os.path.exists(name):
            time.sleep(0.01)
        return "hung"

    @rpc(timeout="60s")
    def block_until_file(self, name: str) -> str:
        while not os.path.exists(name):
            time.sleep(0.01)
        return "done"

    @rpc
    async def nap(self) -> None:
        await asyncio.sleep(0.02)
"""


def up(fleet: Scratch, *, wait: bool = True) -> None:
    fleet.python("busy.py", BUSY)
    fleet.write({"A": {"agent": "busy:Busy", "watchdog": "0s", "start": {"timeout": "60s"}}})
    if wait:
        assert fleet.up()["agents"][0]["phase"] == "ready"


def debug(fleet: Scratch, *words: str) -> dict[str, Any]:
    """What the agent itself answers, as soon as it does: on a busy machine it may seem stuck for a moment."""

    def asked() -> dict[str, Any] | None:
        result = fleet.run("debug", "A", *words, "--json")
        answer: dict[str, Any] = json.loads(result.out)
        assert result.code == 0 or answer["error"]["code"] == "silent", result.err
        return answer if answer.get("from") == "agent" else None

    return dict(until(asked))


def stacks_in_log(fleet: Scratch) -> dict[str, Any]:
    result = fleet.run("debug", "A", "stacks", "--json")
    assert result.code == 0, result.err
    return dict(json.loads(result.out))


def begun(fleet: Scratch, method: str) -> threading.Thread:
    """A call that lasts until the file `go` is there."""
    thread = threading.Thread(target=lambda: fleet.call("A", method, name="go"))
    thread.start()
    return thread


def ended(fleet: Scratch, *threads: threading.Thread) -> None:
    (fleet.folder / "go").touch()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def functions(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["function"] for frame in frames]


def test_a_running_agent_is_looked_into_and_goes_on(fleet: Scratch) -> None:
    up(fleet)
    pid = fleet.rows()["A"].pid
    for _ in range(3):
        fleet.call("A", "nap")
    calls = [begun(fleet, "wait_for_file"), begun(fleet, "block_until_file")]
    try:
        until(
            lambda: (
                sum("_until_file" in it["for"] or "wait_for_file" in it["for"] for it in debug(fleet, "tasks")["tasks"])
                == 2
            )
        )
        seen = debug(fleet, "stacks")
        waiting = next(task for task in seen["tasks"] if "wait_for_file" in task["for"])
        assert "Busy.wait_for_file" in functions(waiting["frames"])
        assert waiting["age_s"] is not None
        running = next(task for task in seen["tasks"] if "Busy.run" in functions(task["frames"]))
        assert (running["name"], running["for"]) == ("A:run", "the agent itself")
        blocked = next(it for it in seen["threads"] if "Busy.block_until_file" in functions(it["frames"]))
        assert (blocked["name"].startswith("handler"), blocked["age_s"] is not None) == (True, True)
        assert seen["others"], "ZeroMQ's threads"
        until(lambda: "await asyncio.sleep(0.01)" in fleet.run("debug", "A", "stacks").out)
        until(lambda: "the agent itself" in fleet.run("debug", "A", "tasks").out)

        heap = debug(fleet, "heap", "--seconds", "1s")
        assert any(it["type"] == "busy.Thing" and it["count"] > 10 for it in heap["types"])
        assert any(it["file"].endswith("busy.py") for it in heap["places"])
        assert "places" not in debug(fleet, "heap")
        assert "allocated within" in fleet.run("debug", "A", "heap", "--seconds", "100ms").out

        collected = debug(fleet, "gc", "--collect")
        assert (collected["enabled"], collected["uncollectable"], len(collected["generations"])) == (True, 0, 3)
        assert collected["frozen"] > 10_000
        until(lambda: "GENERATION" in fleet.run("debug", "A", "gc").out)

        slow = debug(fleet, "slow")
        nap = next(it for it in slow["methods"] if it["method"] == "nap")
        assert (nap["calls"], nap["max_s"] > 0.015, nap["p50_s"] >= 0.01) == (3, True, True)
        assert [it["outcome"] for it in slow["calls"] if it["method"] == "nap"] == ["ok"] * 3
        until(lambda: "slowest calls of late" in fleet.run("debug", "A", "slow").out)
    finally:
        ended(fleet, *calls)
    row = fleet.rows()["A"]
    assert (row.pid, row.phase, row.restarts) == (pid, Phase.READY, 0)


def test_an_agent_whose_loop_is_stuck_still_shows_where(fleet: Scratch) -> None:
    up(fleet)
    pid = fleet.rows()["A"].pid
    call = begun(fleet, "hang_until_file")
    try:
        until((fleet.folder / "hangs").exists)
        seen = stacks_in_log(fleet)
        assert seen["from"] == "log"
        assert "stuck" in seen["why"]
        assert any("in hang_until_file" in line and "busy.py" in line for line in seen["lines"])
        refused = fleet.run("debug", "A", "gc")
        assert refused.code == 1
        assert "`agentkit debug A stacks` shows where it is" in refused.err
    finally:
        ended(fleet, call)
    debug(fleet, "stacks")  # it goes on, and answers again
    assert fleet.rows()["A"].pid == pid


def test_an_agent_that_hangs_in_its_start_shows_where_and_what_can_not_be_looked_into_is_said(fleet: Scratch) -> None:
    up(fleet, wait=False)
    (fleet.folder / "hold").touch()
    fleet.run("up", str(fleet.file), "--no-wait")
    fleet.wait(lambda rows: rows["A"].phase is Phase.STARTING)
    shown = fleet.run("debug", "A", "stacks").out
    assert "has not begun to serve, or is stuck; its stacks" in shown
    assert "in on_start" in shown
    (fleet.folder / "hold").unlink()
    fleet.wait_phase(Phase.READY, "A")
    for words, why in (
        (("gc", "--seconds", "1s"), "only allocations are traced"),
        (("heap", "--collect"), "want 'gc'"),
        (("everything",), "invalid choice"),
    ):
        refused = fleet.run("debug", "A", *words)
        assert refused.code == 2
        assert why.replace("'", "") in refused.err.replace("'", "")
    fleet.run("stop", "A")
    refused = fleet.run("debug", "A", "stacks")
    assert (refused.code, "has no process" in refused.err) == (1, True)
