"""A machine whose agents have more memory than its budget: idle ones are sent to sleep, nobody who is called notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentkit.client import BlockingClient
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch

pytestmark = [pytest.mark.process, pytest.mark.slow]

FAT = """
from __future__ import annotations
import os
from agentkit import AgentConfig, BaseAgent, rpc

class Fat(BaseAgent):
    class Config(AgentConfig):
        mib: int

    async def on_start(self) -> None:
        self.model = os.urandom(self.config.mib * 2**20)

    @rpc
    async def size(self) -> int:
        return len(self.model) // 2**20
"""


@contextmanager
def called_all_the_time(control: str, agent: str) -> Iterator[list[BaseException]]:
    over, failures = threading.Event(), []

    def call() -> None:
        try:
            with BlockingClient(node=control) as client:
                while not over.wait(0.2):
                    client.call(agent, "size", {}, timeout=PATIENCE_S)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield failures
    finally:
        over.set()
        thread.join()


def budget_of(fleet: Scratch, machine: str, reached: Callable[[Any], object]) -> Any:
    """What that machine's node tells of its budget, as soon as it is so."""
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        node = fleet.ask("status", machine, memory=False)["node"]
        if reached(node["memory_budget"]):
            return node["memory_budget"]
        assert time.monotonic() < ends_s, f"{node['memory_budget']}\n{fleet.node_log()[-3000:]}"
        time.sleep(0.2)


def test_above_its_budget_a_machine_sends_the_idle_to_sleep_not_the_busy_and_says_when_it_can_not() -> None:
    with (fleet := Scratch(machines=("m", "n"))):
        fleet.python("fat.py", FAT)
        deep = {"agent": "fat:Fat", "hibernate": {"after": "1h", "depth": "deep"}}
        fleet.write(
            {
                "Busy": {**deep, "config": {"mib": 150}},  # more memory than the other
                "Idle": {**deep, "config": {"mib": 80}},
                "Sleepless": {**deep, "config": {"mib": 40}, "hibernate": {"depth": "never"}, "machine": "n"},
            },
            machines={"m": {"host": "127.0.0.1", "memory_budget": "220Mi"}, "n": {"host": "127.0.0.1"}},
            memory_budget="20Mi",
        )
        fleet.up()
        control = str(fleet.place("m").control)
        with called_all_the_time(control, "Busy") as failures:
            before = fleet.rows("m")["m/Busy"]
            rows = fleet.wait(lambda rows: rows["m/Idle"].phase is Phase.HIBERNATED)
            kept = budget_of(fleet, "m", lambda told: told["used_mb"] is not None and told["used_mb"] < 220)
            assert (rows["m/Busy"].pid, rows["m/Busy"].phase) == (before.pid, Phase.READY)
            assert (kept["budget_mb"], kept["sent_to_sleep"], kept["short"]) == (220.0, 1, "")
            with BlockingClient(node=control) as client:
                assert client.call("Idle", "size", {}, timeout=PATIENCE_S) == 80
        assert not failures
        short = budget_of(fleet, "n", lambda told: told["short"])["short"]
        assert short.startswith("Sleepless ")
        assert short.endswith("(its file says `depth: never`)")
        assert "budget, nobody else can sleep: Sleepless" in fleet.run("status").out
        assert "memory budget of 20 MiB is overrun" in fleet.run("errors").out
