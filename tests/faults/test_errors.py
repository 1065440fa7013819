"""Errors of a real fleet: storms, nodes that die in the middle of one, the whole cluster's errors from any node, and rules."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from startup.plan.phase import Phase
from tests.faults.scratch import Scratch, kill, until
from tests.startup.node.test_webhooks import Receiver

pytestmark = [pytest.mark.process, pytest.mark.slow]

STORM = 100_000

AGENTS = '''
    from __future__ import annotations
    import atexit, asyncio, os, resource, threading, time
    from agentkit import BaseAgent, rpc

    class Reports(BaseAgent):
        @rpc
        def storm(self, times: int) -> None:
            """From a thread of its own, which nobody waits for."""
            self.thread = threading.Thread(target=self._storm, args=(times,), daemon=True)
            self.thread.start()

        def _storm(self, times: int) -> None:
            for n in range(times):
                self.report_error("error", f"try {n} failed", n=n, text="x" * 200)

        @rpc
        def slow_storm(self, times: int) -> None:
            for n in range(times):
                self.report_error("error", f"try {n} failed")
                time.sleep(0.002)

        @rpc
        def memory_kb(self) -> int:
            self.thread.join()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        @rpc
        async def report(self, severity: str, text: str) -> None:
            self.report_error(severity, text)

        @rpc
        async def fail(self) -> None:
            raise LookupError("not there")

    class TalksToTheEnd(Reports):
        """A thread of it goes on reporting until the process is gone, whatever became of the loop."""
        async def run(self) -> None:
            def talk() -> None:
                n = 0
                while True:
                    n += 1
                    self.report_error("warning", f"word {n}")
                    time.sleep(0.001)
            threading.Thread(target=talk, daemon=True).start()

    class NeverWell(BaseAgent):
        async def run(self) -> None:
            while True:
                self.report_error("critical", "it is over")
                await asyncio.sleep(0.05)
'''


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def errors(fleet: Scratch, *words: str) -> dict[str, Any]:
    """Message template (or place) -> group, as the command line tells it."""
    told = fleet.run("errors", "--json", *words)
    assert told.code == 0, told
    return {group["place"]: group for group in told.json["errors"]}


def wait_errors(fleet: Scratch, is_so: Callable[[dict[str, Any]], Any], *words: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def look() -> bool:
        nonlocal found
        found = errors(fleet, *words)
        return bool(is_so(found))

    until(look)
    return found


def test_a_storm_of_100000_is_counted_exactly_and_costs_little(fleet: Scratch) -> None:
    fleet.python("ag.py", AGENTS)
    fleet.write({"A": {"agent": "ag:Reports"}})
    fleet.up()
    fleet.call("A", "storm", times=STORM)
    memory_kb = fleet.call("A", "memory_kb")
    found = wait_errors(fleet, lambda found: found.get("try # failed", {}).get("count") == STORM)
    assert list(found) == ["try # failed"]
    assert memory_kb < 150 * 1024
    assert len(fleet.log("A").splitlines()) < 1000
    assert (fleet.place("m").state / "errors.db").stat().st_size < 1024 * 1024


def test_a_node_killed_in_the_middle_of_a_storm_counts_nothing_twice_and_loses_nothing(fleet: Scratch) -> None:
    fleet.python("ag.py", AGENTS)
    fleet.write({"A": {"agent": "ag:Reports"}})
    fleet.up()
    times = 1500  # of 2 ms each, so several batches are on their way while the node dies
    row = fleet.rows()["A"]
    storm = threading.Thread(target=fleet.call_directly, args=(row, "slow_storm"), kwargs={"times": times})
    storm.start()
    try:
        for _ in range(2):
            before = errors(fleet).get("try # failed", {}).get("count", 0)
            wait_errors(fleet, lambda found, n=before: found.get("try # failed", {}).get("count", 0) > n)
            node = fleet.node_pid()
            kill(node)
            fleet.wait_for_another_node(node)
    finally:
        storm.join()
    found = wait_errors(fleet, lambda found: found["try # failed"]["count"] >= times)
    fleet.call("A", "report", severity="info", text="the storm is over")
    found = wait_errors(fleet, lambda found: "the storm is over" in found)
    assert found["try # failed"]["count"] == times


def test_a_thread_that_reports_until_the_end_neither_keeps_its_agent_nor_breaks_it(fleet: Scratch) -> None:
    fleet.python("ag.py", AGENTS)
    fleet.write({"A": {"agent": "ag:TalksToTheEnd"}})
    fleet.up()
    wait_errors(fleet, lambda found: "word #" in found)
    before = errors(fleet)["word #"]["count"]
    assert fleet.run("stop", "A").code == 0
    assert fleet.rows()["A"].last_exit.startswith("exit 0")
    assert errors(fleet)["word #"]["count"] > before, "its last words"
    assert "Traceback" not in fleet.log("A")


def test_any_node_tells_shows_and_resolves_the_errors_of_the_whole_cluster() -> None:
    with Scratch(machines=("m1", "m2")) as fleet:
        fleet.python("ag.py", AGENTS)
        fleet.write({"A": {"agent": "ag:Reports", "machine": "m1"}, "B": {"agent": "ag:Reports", "machine": "m2"}})
        fleet.up()
        for agent in ("A", "B"):
            assert fleet.run("call", agent, "fail").code == 1

        def from_each(place: str) -> list[Any]:
            """What each node knows, asked itself."""
            told = [fleet.ask("errors", machine) for machine in ("m1", "m2")]
            return [
                [group for answer in one["machines"].values() for group in (answer or {"groups": []})["groups"]
                 if place in group["message"]]
                for one in told
            ]  # fmt: skip

        until(lambda: all(len(found) == 2 for found in from_each("LookupError")))
        kill(fleet.rows()["m2/B"].pid)
        until(lambda: all(found and found[0]["agent"] == "m2/B" for found in from_each("signal SIGKILL")))
        (failed,) = [group for group in from_each("LookupError")[0] if group["agent"] == "m2/B"]
        shown = fleet.run("errors", "show", failed["id"][:7])
        assert shown.code == 0
        assert 'raise LookupError("not there")' in shown.out
        assert fleet.run("errors", "resolve", failed["id"][:7]).code == 0
        assert [len(found) for found in from_each("LookupError")] == [1, 1]
        fleet.wait_phase(Phase.READY, "m2/B")
        following = fleet.popen("errors", "-f", "--json", "--agent", "B")
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["agent"] == "m2/B"  # what is there already
        assert fleet.run("call", "B", "fail").code == 1
        while (told := json.loads(following.stdout.readline()))["id"] != failed["id"]:
            pass
        assert (told["count"], told["reopened"]) == (2, 1)
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 130
        until(lambda: all(len(found) == 2 for found in from_each("LookupError")))
        assert "reopened 1 time" in fleet.run("errors", "show", failed["id"]).out
        listed = fleet.run("errors", "--agent", "B", "--severity", "error")
        assert "LookupError" in listed.out
        assert "m1/A" not in listed.out


def test_rules_restart_quarantine_and_call_a_webhook(fleet: Scratch, receiver: Receiver) -> None:
    fleet.python("ag.py", AGENTS)
    hook = {"do": "webhook", "severity": "error", "url": receiver.url("/errors?token=hunter2")}
    fleet.write(
        {
            "Restarted": {"agent": "ag:Reports", "on_error": [{"do": "restart", "severity": "critical"}, hook]},
            "Quarantined": {"agent": "ag:Reports", "on_error": {"do": "quarantine", "severity": "error", "after": 3}},
            "Needs": {"agent": "ag:Reports", "dependencies": ["Quarantined"]},
        }
    )
    fleet.up()
    before = fleet.rows()
    # restart: counted, as its budget is spent
    fleet.call("Restarted", "report", severity="error", text="not bad enough")
    fleet.call("Restarted", "report", severity="critical", text="it is over")
    again = fleet.wait_restarted("Restarted", before["Restarted"])
    assert again.restarts == 1
    # webhook: each kind of error once
    for _ in range(2):
        assert receiver.arrived.acquire(timeout=30)
    told = {document["message"]: document for _, document in receiver.received}
    assert set(told) == {"not bad enough", "it is over"}
    assert (told["it is over"]["severity"], told["it is over"]["agent"]) == ("critical", "m/Restarted")
    assert {path for path, _ in receiver.received} == {"/errors?token=hunter2"}
    assert "hunter2" not in fleet.node_log()
    # quarantine: stopped, with the reason, whatever happens to node and machine, until an operator starts it
    for n in range(3):
        fleet.call("Quarantined", "report", severity="error", text=f"strike {n}")
    fleet.wait_phase(Phase.FAILED, "Quarantined")
    fleet.wait(lambda rows: rows["Needs"].health.value == "degraded")
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    os.unlink(fleet.place("m").state / "processes.msgpack")
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    row = fleet.wait_phase(Phase.FAILED, "Quarantined")["Quarantined"]
    assert row.pid is None
    assert row.reason.startswith("quarantined: 3 errors within 60 s, the last: error: strike 2")
    assert "quarantined" in fleet.run("status", "Quarantined").out
    assert fleet.run("start", "Quarantined").code == 0
    fleet.wait(lambda rows: rows["Needs"].health.value == "ok")
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    assert fleet.wait_phase(Phase.READY, "Quarantined")


def test_a_rule_can_not_restart_an_agent_for_ever(fleet: Scratch) -> None:
    fleet.python("ag.py", AGENTS)
    rule = {"do": "restart", "severity": "critical", "within": "100ms"}
    fleet.write({"A": {"agent": "ag:NeverWell", "on_error": rule, "restart": {"max_attempts": 2}}})
    fleet.up()
    wait_errors(fleet, lambda found: any(place.startswith("not restarted by its rule") for place in found))
    row = fleet.wait_phase(Phase.READY, "A")["A"]
    assert row.restarts == 2
    count = errors(fleet)["it is over"]["count"]
    wait_errors(fleet, lambda found: found["it is over"]["count"] > count)
    assert fleet.rows()["A"].pid == row.pid
