"""One process takes over from another: nobody's call fails, nothing runs in both, and whatever dies in between, one serves in the end."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
import zmq

from agentkit.client import BlockingClient
from startup.node.procinfo import environ
from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from tests.faults.scratch import PATIENCE_S, Scratch, is_alive, kill, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Tells what it does, and does what a file of the project says: `slow` and `broken` hold or fail a start, `deaf` ignores signals.
ROLLING = """
from __future__ import annotations
import asyncio, os, signal
from agentkit import AgentConfig, BaseAgent, every, rpc

class Rolling(BaseAgent):
    async def on_start(self):
        self.tell("starts")
        while os.path.exists("slow"):
            await asyncio.sleep(0.01)
        if os.path.exists("broken"):
            raise FileNotFoundError("the model is not there")
        if os.path.exists("deaf"):
            for number in (signal.SIGTERM, signal.SIGRTMIN + 3, signal.SIGRTMIN + 4):
                asyncio.get_running_loop().add_signal_handler(number, self.tell, "hears nothing")

    async def on_stop(self):
        self.tell("ends")

    async def run(self):
        self.tell("runs")
        try:
            await asyncio.sleep(3600)
        finally:
            self.tell("ran")

    @rpc
    async def pid(self) -> int:
        return os.getpid()

    @rpc(timeout="60s")
    async def until(self, file: str) -> int:
        self.tell("works")
        while not os.path.exists(file):
            await asyncio.sleep(0.01)
        return os.getpid()

    def tell(self, what):
        with open("told", "a") as file:
            file.write(f"{os.getpid()} {what}\\n")

class Handing(Rolling):
    roll = "handover"
"""
AGENTKIT = (sys.executable, "-m", "startup")
WAYS = pytest.mark.parametrize("cls", ["Rolling", "Handing"])


def up(fleet: Scratch, cls: str, **settings: Any) -> AgentRow:
    fleet.python("rolling.py", ROLLING)
    fleet.write({"A": {"agent": f"rolling:{cls}", **settings}})
    assert fleet.up()["agents"][0]["phase"] == "ready"
    return fleet.rows()["A"]


def flag(fleet: Scratch, name: str, *, up: bool = True) -> None:
    if up:
        (fleet.folder / name).touch()
    else:
        (fleet.folder / name).unlink()


def both(fleet: Scratch) -> dict[int, str]:
    """pid -> incarnation of every process of the fleet, which is A alone."""
    node = str(fleet.place("m").control)
    found = {}
    for process in psutil.process_iter():
        marks = environ(process.pid)
        if marks.get("AGENTKIT_NODE") == node and is_alive(process.pid):
            found[process.pid] = marks["AGENTKIT_INCARNATION"]
    return found


def successor_of(fleet: Scratch, row: AgentRow) -> int:
    """Pid of the process beside the one of `row`, as soon as there is one."""
    return int(until(lambda: next((pid for pid in both(fleet) if pid != row.pid), None)))


def one_serves(fleet: Scratch, *, not_before: int = 0, killed: int | None = None) -> AgentRow:
    """The end of every test here: one process, which is ready, alone and runs. `killed`: who could not say that its `run` ended."""
    row = fleet.wait(
        lambda rows: rows["A"].phase is Phase.READY and not rows["A"].roll and rows["A"].incarnation > not_before
    )["A"]
    until(lambda: set(both(fleet)) == {row.pid})
    assert fleet.call("A", "pid") == row.pid
    until(lambda: f"{row.pid} runs" in fleet.told())
    ran = 0
    for line in fleet.told():  # `run` never in two at a time
        pid, _, what = line.partition(" ")
        ran += {"runs": 1, "ran": -1}.get(what, 0) if pid != str(killed) else 0
        assert ran <= 1, fleet.told()
    return row


@contextmanager
def callers(fleet: Scratch, count: int = 4) -> Iterator[set[int]]:
    """Callers that never pause; the pids that answered. Every call has to be answered."""
    answered: set[int] = set()
    failed: list[Exception] = []
    over = threading.Event()

    def call() -> None:
        with BlockingClient(node=str(fleet.place("m").control)) as client:
            while not over.is_set():
                try:
                    answered.add(client.call("A", "pid", timeout=PATIENCE_S))
                except Exception as exc:
                    failed.append(exc)
                    return

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not failed, failed[0]


@WAYS
def test_a_restart_under_callers_fails_no_call_and_runs_nothing_in_both(fleet: Scratch, cls: str) -> None:
    before = up(fleet, cls)
    with callers(fleet) as answered:
        until(lambda: before.pid in answered)
        for _ in range(3):
            assert fleet.run("restart", "A").code == 0
        row = one_serves(fleet, not_before=before.incarnation)
        until(lambda: row.pid in answered)
    assert (row.restarts, row.roll_error) == (0, "")
    if cls == "Handing":  # a process begins to start only after the one before it has ended
        pairs = [line.split(" ", 1) for line in fleet.told()]
        ends = [what for _, what in pairs if what in ("starts", "ends")]
        assert ends == ["starts", "ends"] * 3 + ["starts"]


def test_a_successor_that_fails_to_start_leaves_the_old_one_serving_and_the_command_says_why(fleet: Scratch) -> None:
    before = up(fleet, "Rolling")
    flag(fleet, "broken")
    with callers(fleet):
        result = fleet.run("restart", "A")
    assert result.code == 1
    assert "the model is not there" in result.out
    row = fleet.rows()["A"]
    assert (row.phase, row.pid, row.restarts, row.is_replaced) == (Phase.READY, before.pid, 0, False)
    assert "the model is not there" in row.roll_error
    assert "not replaced, it serves on" in fleet.run("status").out
    assert one_serves(fleet).pid == before.pid
    flag(fleet, "broken", up=False)
    assert fleet.run("restart", "A").code == 0
    assert one_serves(fleet, not_before=before.incarnation).roll_error == ""


def test_a_changed_spec_that_nobody_can_start_with_is_told_by_up_and_the_old_one_serves(fleet: Scratch) -> None:
    before = up(fleet, "Rolling")
    settings = {"agent": "rolling:Rolling", "port": int(before.endpoints["inbox-local"].rpartition(":")[2])}
    settings["health_check_port"] = int((before.health_url or "").rpartition(":")[2].partition("/")[0])
    flag(fleet, "broken")
    fleet.write({"A": {**settings, "env": {"X": "1"}}})
    result = fleet.run("up", "fleet.yaml")
    assert (result.code, "the model is not there" in result.out) == (1, True)
    assert one_serves(fleet).pid == before.pid
    flag(fleet, "broken", up=False)
    assert fleet.run("up", "fleet.yaml").code == 0
    assert one_serves(fleet, not_before=before.incarnation).pid != before.pid


def test_ready_stays_200_on_the_health_port_through_an_overlap(fleet: Scratch) -> None:
    before = up(fleet, "Rolling")
    url = (before.health_url or "").replace("/health", "/ready")
    codes: list[int] = []
    refusals: list[str] = []
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            try:
                with urlopen(url, timeout=PATIENCE_S) as answer:
                    codes.append(answer.status)
            except HTTPError as error:
                codes.append(error.code)
                refusals.append(error.read().decode())

    threads = [threading.Thread(target=probe) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        flag(fleet, "slow")
        with fleet.begin(*AGENTKIT, "restart", "A") as command:
            new = successor_of(fleet, before)
            until(lambda: f"{new} starts" in fleet.told())
            seen = len(codes)
            until(lambda: len(codes) > seen + 20)
            flag(fleet, "slow", up=False)
            command.communicate(timeout=PATIENCE_S)
        for _ in range(3):
            assert fleet.run("restart", "A").code == 0
        one_serves(fleet, not_before=before.incarnation)
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert set(codes) == {200}, refusals


def test_a_call_that_runs_is_finished_by_the_old_one_while_the_new_one_serves(fleet: Scratch) -> None:
    before = up(fleet, "Rolling", shutdown={"grace": "30s"})
    with ThreadPoolExecutor() as pool:
        long = pool.submit(fleet.call, "A", "until", file=str(fleet.folder / "done"))
        until(lambda: f"{before.pid} works" in fleet.told())
        assert fleet.run("restart", "A").code == 0
        row = fleet.rows()["A"]
        assert (row.phase, row.roll) == (Phase.READY, f"its predecessor (pid {before.pid}) drains")
        assert f"its predecessor (pid {before.pid}) drains" in fleet.run("status").out
        assert fleet.call("A", "pid") == row.pid != before.pid
        assert f"{row.pid} runs" not in fleet.told(), "the old one still does"
        flag(fleet, "done")
        assert long.result(PATIENCE_S) == before.pid
    assert one_serves(fleet).pid == row.pid


@WAYS
def test_an_old_one_that_is_deaf_in_its_drain_is_killed_when_its_grace_is_over(fleet: Scratch, cls: str) -> None:
    fleet.folder.joinpath("deaf").touch()
    before = up(fleet, cls, shutdown={"grace": "300ms"})
    flag(fleet, "deaf", up=False)
    assert fleet.run("restart", "A").code == 0
    row = one_serves(fleet, not_before=before.incarnation, killed=before.pid)
    assert (row.restarts, row.roll_error) == (0, "")
    assert f"{before.pid} hears nothing" in fleet.told()
    assert f"{before.pid} ends" not in fleet.told()


def test_a_parked_one_that_is_killed_leaves_the_old_one_untouched(fleet: Scratch) -> None:
    """It is killed as soon as it is there: parked, or on its way to that; the old one hears nothing of it."""
    before = up(fleet, "Handing")
    with callers(fleet), fleet.begin(*AGENTKIT, "restart", "A") as command:
        kill(successor_of(fleet, before))
        _, _ = command.communicate(timeout=PATIENCE_S)
    row = one_serves(fleet)
    if command.returncode:  # else it was killed when it had been released already, and was started again
        assert (row.pid, row.restarts) == (before.pid, 0)
        assert f"{before.pid} ends" not in fleet.told()


@WAYS
@pytest.mark.parametrize("command", ["stop", "down"])
def test_stop_and_down_in_the_middle_of_a_roll_leave_nothing(fleet: Scratch, cls: str, command: str) -> None:
    before = up(fleet, cls, shutdown={"grace": "500ms"})
    flag(fleet, "slow")
    fleet.ask("restart", agents=["A"])
    new = successor_of(fleet, before)
    until(lambda: f"{new} starts" in fleet.told())
    if cls == "Rolling":
        assert fleet.rows()["A"].phase is Phase.READY
    words = ("stop", "A") if command == "stop" else ("down",)
    assert fleet.run(*words).code == 0
    assert not both(fleet)
    if command == "stop":
        assert fleet.rows()["A"].phase is Phase.STOPPED
        flag(fleet, "slow", up=False)
        assert fleet.run("start", "A").code == 0
        one_serves(fleet)


@WAYS
def test_two_restarts_at_once_both_end_and_one_process_serves(fleet: Scratch, cls: str) -> None:
    before = up(fleet, cls)
    with callers(fleet), fleet.begin(*AGENTKIT, "restart", "A") as one, fleet.begin(*AGENTKIT, "restart", "A") as two:
        one.communicate(timeout=PATIENCE_S)
        two.communicate(timeout=PATIENCE_S)
    assert (one.returncode, two.returncode) == (0, 0)
    assert one_serves(fleet, not_before=before.incarnation).restarts == 0


def test_a_node_killed_while_the_successor_starts_ends_it_and_the_next_node_replaces_again(fleet: Scratch) -> None:
    before = up(fleet, "Rolling")
    flag(fleet, "slow")
    with callers(fleet):
        fleet.ask("restart", agents=["A"])
        new = successor_of(fleet, before)
        until(lambda: f"{new} starts" in fleet.told())
        node = fleet.node_pid()
        kill(node)
        until(lambda: not is_alive(new))
        assert is_alive(before.pid or 0)
        fleet.wait_for_another_node(node)
        flag(fleet, "slow", up=False)
        row = one_serves(fleet, not_before=before.incarnation)
    assert row.pid not in (before.pid, new)
    assert row.restarts == 0


def test_a_node_killed_while_the_old_one_drains_leaves_the_new_one_serving_alone(fleet: Scratch) -> None:
    before = up(fleet, "Rolling", shutdown={"grace": "30s"})
    with ThreadPoolExecutor() as pool:
        long = pool.submit(fleet.call_directly, before, "until", file=str(fleet.folder / "done"))
        until(lambda: f"{before.pid} works" in fleet.told())
        assert fleet.run("restart", "A").code == 0
        new = fleet.rows()["A"]
        node = fleet.node_pid()
        kill(node)
        assert fleet.call_directly(new, "pid") == new.pid
        flag(fleet, "done")  # with a node or without one: the new one goes on when the old one has ended
        assert long.result(PATIENCE_S) == before.pid
        until(lambda: f"{new.pid} runs" in fleet.told())
        fleet.wait_for_another_node(node)
    assert one_serves(fleet).pid == new.pid


def test_a_node_killed_in_a_handover_ends_with_one_new_process(fleet: Scratch) -> None:
    """While the old one drains: the parked one ends with the node, the next node starts another when the old one has ended."""
    before = up(fleet, "Handing", shutdown={"grace": "30s"})
    with ThreadPoolExecutor() as pool:
        long = pool.submit(fleet.call_directly, before, "until", file=str(fleet.folder / "done"))
        until(lambda: f"{before.pid} works" in fleet.told())
        fleet.ask("restart", agents=["A"])
        fleet.wait(lambda rows: rows["A"].phase is Phase.DRAINING)
        parked = successor_of(fleet, before)
        node = fleet.node_pid()
        kill(node)
        until(lambda: not is_alive(parked))
        fleet.wait_for_another_node(node)
        flag(fleet, "done")
        assert long.result(PATIENCE_S) == before.pid
    row = one_serves(fleet, not_before=before.incarnation)
    assert (row.restarts, row.pid == parked) == (0, False)


def test_a_plain_caller_that_asks_all_the_time_holds_the_drain_back_until_the_grace_period_ends(fleet: Scratch) -> None:
    before = up(fleet, "Rolling", shutdown={"grace": "1500ms"})
    with zmq.Context() as context, context.socket(zmq.REQ) as caller:
        caller.linger, caller.rcvtimeo = 0, 2000
        caller.connect(before.endpoints["inbox-local"])

        def ask() -> int:
            caller.send(json.dumps({"action": "pid"}).encode())
            try:
                return int(json.loads(caller.recv()).get("result", 0))
            except zmq.Again:
                return 0  # it was on its way when the grace period ended

        assert ask() == before.pid
        fleet.ask("restart", agents=["A"])
        answered_beside = 0
        while ask() == before.pid:
            answered_beside += fleet.rows()["A"].incarnation != before.incarnation
        assert answered_beside > 3, "the old one served it while the new one served others"
    assert one_serves(fleet, not_before=before.incarnation).pid != before.pid
