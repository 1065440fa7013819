"""What agents of a real fleet remember: through rolls, kills, crashes of the node, and files that were damaged."""

from __future__ import annotations

import os
import shutil
import signal
import threading

import pytest

from agentkit.state.sqlite import FILE_NAME, SqliteStore
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, kill, until
from tests.redis_server import RedisServer, needs_redis

pytestmark = [pytest.mark.process, pytest.mark.slow]

COUNTING = """
from __future__ import annotations
import os
import shutil
from agentkit import AgentState, BaseAgent, rpc

class Counting(BaseAgent):
    class State(AgentState):
        count: int = 0
        starts: list[int] = []
    state: State

    async def on_start(self):
        self.state.starts.append(self.state.count)

    @rpc(timeout="60s")
    async def add(self) -> int:
        self.state.count += 1
        return self.state.count

    @rpc
    async def keep(self) -> None:
        await self.save()

    @rpc
    async def starts(self) -> list[int]:
        return self.state.starts

class Overlapping(Counting):
    roll = "overlap"
"""


def up(fleet: Scratch, cls: str = "Counting", **settings: object) -> None:
    fleet.python("counting.py", COUNTING)
    fleet.write({"A": {"agent": f"counting:{cls}", **settings}})
    assert fleet.up()["agents"][0]["phase"] == "ready"


def test_no_call_that_was_answered_is_forgotten_while_an_agent_is_restarted_under_load(fleet: Scratch) -> None:
    up(fleet)
    answers: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(fleet.call("A", "add"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(2):
            seen, before = len(answers), fleet.rows()["A"]
            until(lambda: len(answers) > seen + 20)  # noqa: B023 - it is called at once
            fleet.run("restart", "A")
            fleet.wait_restarted("A", before)
    finally:
        ended.set()
        asking.join(PATIENCE_S)
    assert answers == list(range(1, len(answers) + 1)), "each saw what the one before it had done"
    assert len(fleet.call("A", "starts")) == 3
    state = fleet.rows()["A"].state
    assert (state["store"], state["number"]) == ("sqlite", 2.0)


def test_what_was_saved_outlives_kill_9_a_crash_of_the_node_and_down(fleet: Scratch) -> None:
    up(fleet)
    fleet.call("A", "add")
    fleet.call("A", "keep")
    fleet.call("A", "add")
    row = fleet.rows()["A"]
    kill(row.pid)
    fleet.wait_restarted("A", row)
    assert fleet.call("A", "starts") == [0, 1], "what was not saved is gone"
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    fleet.wait(lambda rows: rows["A"].phase is Phase.READY and rows["A"].state.get("number") == 1.0)
    assert fleet.call("A", "add") == 2
    fleet.run("down")
    up(fleet)
    assert fleet.call("A", "add") == 3
    assert "in sqlite:" in fleet.run("status", "A").out


def test_a_damaged_state_fails_the_agent_with_the_remedy_and_the_one_before_is_used(fleet: Scratch) -> None:
    up(fleet, restart={"max_attempts": 0, "retry_failed_after": "0s"})
    for _ in range(2):
        fleet.call("A", "add")
        fleet.call("A", "keep")
    fleet.run("stop", "A")
    store = SqliteStore(fleet.place("m").data("A"))
    newest = store.load().snapshots[0].place
    for places, phase, says in (
        ((newest,), Phase.READY, "FELL BACK: snapshot"),
        ((0, 1), Phase.FAILED, "put a copy back, or move"),
    ):
        for place in places:
            store._opened().execute(f"UPDATE snapshot_{place} SET data = x'00'")
        store.close()
        fleet.run("start", "A")
        fleet.wait(lambda rows: rows["A"].phase is phase)  # noqa: B023 - it is called at once
        assert says in fleet.run("status", "A").out
        fleet.run("stop", "A")


def test_a_process_that_was_thought_dead_does_not_write_over_its_successors_state(fleet: Scratch) -> None:
    """SIGSTOP, as a machine that is suspended would do it: meanwhile somebody else takes the state over."""
    up(fleet, watchdog="0s")
    fleet.call("A", "add")
    fleet.call("A", "keep")
    row = fleet.rows()["A"]
    assert row.pid is not None
    os.kill(row.pid, signal.SIGSTOP)
    store = SqliteStore(fleet.place("m").data("A"))
    store.claim(row.incarnation + 1)  # type: ignore[arg-type]
    os.kill(row.pid, signal.SIGCONT)
    fleet.call("A", "add")
    fleet.run("stop", "A")
    assert store.load().snapshots[0].data.startswith(b'{"count":1')
    store.close()
    assert "may not write" in fleet.log("A")


def test_with_overlap_the_old_process_saves_until_it_is_gone_and_the_new_one_says_what_it_replaces(
    fleet: Scratch,
) -> None:
    up(fleet, "Overlapping")
    fleet.call("A", "add")
    before = fleet.rows()["A"]
    fleet.run("restart", "A")
    fleet.wait_restarted("A", before)
    until(lambda: "state.overtaken" in fleet.log("A"))
    fleet.call("A", "add")
    fleet.call("A", "keep")
    assert fleet.rows()["A"].state["number"] == 2.0
    assert (fleet.place("m").data("A") / FILE_NAME).exists()


def test_the_state_of_a_machine_that_was_lost_is_found_in_redis_by_its_next_node(fleet: Scratch) -> None:
    needs_redis()
    server = RedisServer("--requirepass", "hush")
    server.start()
    try:
        secret = fleet.python("redis.url", f"redis://:hush@127.0.0.1:{server.port}/0\n")
        state = {"store": "redis", "url": {"file": str(secret)}, "every": "1h"}
        up(fleet, state=state)
        fleet.call("A", "add")
        fleet.run("restart", "A")
        assert fleet.call("A", "add") == 2
        assert "in redis:" in fleet.run("status", "A").out
        fleet.run("down")
        shutil.rmtree(fleet.folder / "state")
        up(fleet, state=state)
        assert fleet.call("A", "add") == 3
        assert "hush" not in fleet.log("A") + fleet.node_log() + fleet.run("status", "A", "--json").out
        assert not (fleet.place("m").data("A") / FILE_NAME).exists()
    finally:
        fleet.run("down")
        server.close()
