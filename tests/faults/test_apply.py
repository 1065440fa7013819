"""A change of the whole fleet under its callers: no call fails, one that does not come up takes everything back, whoever dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from agentkit.client import BlockingClient
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Rows, Scratch, kill, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Starts when nothing holds it, and fails when its own config, or a file of the project, says so.
CHANGING = """
from __future__ import annotations
import asyncio, os
from agentkit import AgentConfig, BaseAgent, rpc

class Changing(BaseAgent):
    class Config(AgentConfig):
        value: int = 1
        fails: bool = False

    async def on_start(self):
        while os.path.exists(f"hold-{self.name}"):
            await asyncio.sleep(0.01)
        if self.config.fails:
            raise FileNotFoundError("the model is not there")

    @rpc
    async def once(self) -> int:
        await asyncio.sleep(0.001)
        return self.config.value

    @rpc(idempotent=True)
    async def again(self) -> int:
        return self.config.value

    @rpc
    def pid(self) -> int:
        return os.getpid()

class Taking(Changing):
    async def on_config(self, config: Changing.Config):
        if config.value == 13:
            raise ValueError("not this one")
"""
NAMES = ("A", "B", "C", "D")


def write(fleet: Scratch, value: int, *, fails: str = "", **more: Any) -> None:
    """D needs C, C needs B, A needs nobody; what has changed is their config."""
    machines = fleet.machines
    agents = {
        name: {
            "agent": "changing:Changing",
            "machine": machines[place % len(machines)],
            "config": {"value": value, "fails": name == fails},
            "dependencies": {"C": ["B"], "D": ["C"]}.get(name, []),
            **PORTS[name],
        }
        for place, name in enumerate(NAMES)
    }
    fleet.write(agents, rollout={"max_unavailable": more.pop("most", 1)}, **more)


#: The same in every file of a test: agents whose ports change are not replaced while they serve.
PORTS: dict[str, dict[str, int]] = {name: {} for name in NAMES}


@pytest.fixture(autouse=True)
def _ports() -> None:
    from tests.startup.cli.launched import free_port

    PORTS.update({name: {"port": free_port(), "health_check_port": free_port()} for name in NAMES})


def begin(fleet: Scratch, value: int = 1) -> Rows:
    fleet.python("changing.py", CHANGING)
    write(fleet, value)
    fleet.up()
    return fleet.rows()


def apply(fleet: Scratch, *words: str) -> Any:
    return fleet.run("apply", str(fleet.file), "--yes", *words)


def values(fleet: Scratch, names: Sequence[str] = NAMES) -> list[int]:
    return [fleet.call(name, "again") for name in names]


@contextmanager
def callers(fleet: Scratch, names: Sequence[str], each: int = 2) -> Iterator[Callable[[int], None]]:
    """Threads that call all the time, half of them what may be repeated and half what may not. Every call has to be answered.

    Yields what waits until each agent has answered so many more of them."""
    made = dict.fromkeys(names, 0)
    failed: list[Exception] = []
    over = threading.Event()

    def call(name: str, method: str) -> None:
        with BlockingClient(node=str(fleet.place(fleet.machines[0]).control)) as client:
            while not over.is_set():
                try:
                    client.call(name, method, timeout=PATIENCE_S)
                except Exception as exc:
                    failed.append(exc)
                    over.set()
                    return
                made[name] += 1

    ways = [(name, ("once", "again")[n % 2]) for name in names for n in range(each)]
    threads = [threading.Thread(target=call, args=way) for way in ways]
    for thread in threads:
        thread.start()

    def go_on(number: int) -> None:
        wanted = {name: count + number for name, count in made.items()}
        until(lambda: over.is_set() or all(made[name] >= wanted[name] for name in names))
        assert not failed, failed[0]

    try:
        go_on(1)
        yield go_on
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    assert not failed, failed[0]


def test_a_change_of_every_agent_fails_no_call(fleet: Scratch) -> None:
    before = begin(fleet)
    write(fleet, 2, most=2)
    with callers(fleet, NAMES) as go_on:
        result = apply(fleet, "--json")
        go_on(10)
    assert result.code == 0, result.err
    assert result.json["rolled_back"] == ""
    assert [it["agent"] for it in result.json["changes"]["changed"]] == [f"m/{name}" for name in NAMES]
    assert values(fleet) == [2] * 4
    rows = fleet.rows()
    assert all(rows[name].pid != before[name].pid for name in NAMES)
    assert rows["B"].incarnation < rows["C"].incarnation < rows["D"].incarnation


def test_one_that_does_not_become_ready_takes_the_others_back_and_touches_no_further_one(fleet: Scratch) -> None:
    before = begin(fleet)
    write(fleet, 2, fails="C")
    with callers(fleet, NAMES):
        result = apply(fleet)
    assert result.code == 1
    assert "revision 2 was rolled back: m/C did not become ready: on_start raised FileNotFoundError" in result.err
    assert "the end of the log of m/C" in result.err
    assert values(fleet) == [1] * 4
    rows = fleet.rows()
    assert {name: rows[name].pid == before[name].pid for name in NAMES} == {
        "A": False,
        "B": False,
        "C": True,
        "D": True,
    }
    told = fleet.run("rollback", "--list", "--json").json
    assert [it["number"] for it in told["revisions"]] == [1, 2, 3]
    assert told["revisions"][0]["digest"] == told["revisions"][2]["digest"]
    assert "rolled back" in told["revisions"][2]["note"]


def test_without_a_rollback_it_is_left_halted_and_the_next_file_goes_on_from_there(fleet: Scratch) -> None:
    begin(fleet)
    write(fleet, 2, fails="B")
    result = apply(fleet, "--no-rollback")
    assert result.code == 1
    assert "halted: m/B did not become ready" in result.err
    assert values(fleet) == [2, 1, 1, 1]
    write(fleet, 2)
    assert apply(fleet).code == 0
    assert values(fleet) == [2] * 4


def test_the_nodes_carry_on_without_the_command_and_roll_back_without_it(fleet: Scratch) -> None:
    before = begin(fleet)
    (fleet.folder / "hold-B").touch()
    write(fleet, 2, fails="D")
    command = fleet.popen("apply", str(fleet.file), "--yes")
    fleet.wait(lambda rows: rows["A"].rolled == 2 and rows["B"].roll)
    kill(command.pid)
    (fleet.folder / "hold-B").unlink()
    rows = fleet.wait(lambda rows: all(rows[name].rolled == 3 and not rows[name].roll for name in NAMES))
    assert values(fleet) == [1] * 4
    assert rows["D"].pid == before["D"].pid
    assert "m/D did not become ready" in fleet.ask("hello")["revision"]["note"]


def test_a_node_that_dies_half_way_is_followed_by_one_that_finishes(fleet: Scratch) -> None:
    begin(fleet)
    (fleet.folder / "hold-C").touch()
    write(fleet, 2)
    command = fleet.popen("apply", str(fleet.file), "--yes")
    fleet.wait(lambda rows: rows["B"].rolled == 2 and rows["C"].roll)
    node = fleet.node_pid()
    kill(node, command.pid)
    (fleet.folder / "hold-C").unlink()
    fleet.wait_for_another_node(node)
    fleet.wait(lambda rows: all(rows[name].rolled == 2 and not rows[name].roll for name in NAMES))
    assert values(fleet) == [2] * 4


def test_a_failure_on_one_machine_takes_the_other_back() -> None:
    with Scratch(machines=("m", "n")) as fleet:
        before = begin(fleet)
        write(fleet, 2, fails="D")
        result = apply(fleet)
        assert result.code == 1
        assert "n/D did not become ready" in result.err
        assert values(fleet) == [1] * 4
        rows = fleet.rows()
        assert rows["n/D"].pid == before["n/D"].pid
        assert rows["m/A"].pid != before["m/A"].pid
        assert {fleet.ask("hello", machine)["revision"]["number"] for machine in fleet.machines} == {3}


def test_a_machine_without_the_revision_before_gets_it_from_another_and_goes_back_too() -> None:
    with Scratch(machines=("m", "n")) as fleet:
        begin(fleet)
        (before,) = (fleet.place("n").state / "revisions").iterdir()
        before.unlink()
        write(fleet, 2, fails="D")
        result = apply(fleet)
        assert result.code == 1
        assert "n/D did not become ready" in result.err
        assert values(fleet) == [1] * 4
        assert {fleet.ask("hello", machine)["revision"]["number"] for machine in fleet.machines} == {3}
        assert "rollout.base_sent" in (fleet.place("n").logs / "node.log").read_text()


def test_replicas_come_and_go_without_a_failed_call(fleet: Scratch) -> None:
    begin(fleet)
    with callers(fleet, ["A"], each=6) as go_on:
        for number in (4, 1, 3, 1, 4, 1):
            result = fleet.run("scale", f"A={number}", "--json")
            assert result.code == 0, result.err
            rows = fleet.rows()
            slots = sorted(row.id.slot for row in rows.values() if row.id.name == "A" and row.phase is Phase.READY)
            assert slots == list(range(number))
            go_on(50)
    assert fleet.call("A", "again") == 1


def test_all_replicas_are_called_and_what_was_scaled_outlives_the_node_and_up_but_not_apply(fleet: Scratch) -> None:
    begin(fleet)
    assert fleet.run("scale", "A=3").code == 0
    pids = {row.pid for row in fleet.rows().values() if row.id.name == "A"}
    with BlockingClient(node=str(fleet.place("m").control)) as client:
        until(lambda: {client.call("A", "pid") for _ in range(20)} == pids)
    ports = {row.endpoints["inbox-local"] for row in fleet.rows().values()}
    assert len(ports) == 6
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    fleet.up()
    assert {row.pid for row in fleet.rows().values() if row.id.name == "A"} == pids
    result = apply(fleet)
    assert "m/A  replicas 3 (scaled) → 1" in result.err
    assert result.code == 0
    assert [row.id.slot for row in fleet.rows().values() if row.id.name == "A"] == [0]


def test_who_takes_a_config_while_it_runs_is_told_in_its_turn_and_is_taken_back_alike(fleet: Scratch) -> None:
    fleet.python("changing.py", CHANGING)
    entry = {"agent": "changing:Taking", **PORTS["A"]}
    fleet.write({"A": {**entry, "config": {"value": 1}}})
    fleet.up()
    pid = fleet.rows()["A"].pid
    fleet.write({"A": {**entry, "config": {"value": 2}}})
    result = apply(fleet)
    assert result.code == 0, result.err
    assert "m/A  config (in place)" in result.err
    assert (values(fleet, ["A"]), fleet.rows()["A"].pid) == ([2], pid)
    assert fleet.run("rollback", "--yes").code == 0
    assert (values(fleet, ["A"]), fleet.rows()["A"].pid) == ([1], pid)
    fleet.write({"A": {**entry, "config": {"value": 13}}})
    assert apply(fleet).code == 0
    assert values(fleet, ["A"]) == [13]
    assert fleet.rows()["A"].pid != pid


def test_back_to_any_revision_and_only_on_a_yes(fleet: Scratch) -> None:
    begin(fleet)
    write(fleet, 2)
    refused = fleet.run("apply", str(fleet.file))
    assert refused.code == 2
    assert "config.value  1 → 2" in refused.err
    assert "--yes" in refused.err
    assert fleet.run("apply", str(fleet.file), "--json").json["applied"] is False
    assert values(fleet) == [1] * 4
    assert apply(fleet, "--max-unavailable", "50%").code == 0
    again = apply(fleet)
    assert again.code == 0
    assert "nothing changes: 4 agents stay as they are" in again.err
    assert fleet.run("stop", "D").code == 0
    result = fleet.run("rollback", "1", "--yes")
    assert result.code == 0, result.err
    assert values(fleet) == [1] * 4
    assert fleet.ask("hello")["revision"]["number"] == 4
    assert "started" in fleet.run("rollback", "--list").out
    missing = fleet.run("rollback", "99", "--yes")
    assert missing.code == 2
    assert "one that is kept: 1, 2, 3, 4" in missing.err


def test_agents_exchange_their_ports_in_one_change(fleet: Scratch) -> None:
    before = begin(fleet)
    PORTS["A"], PORTS["B"] = PORTS["B"], PORTS["A"]
    write(fleet, 1)
    with callers(fleet, ["D"]):
        result = apply(fleet, "--json")
    assert result.code == 0, result.err
    assert result.json["rolled_back"] == ""
    rows = fleet.rows()
    assert rows["A"].endpoints == before["B"].endpoints
    assert values(fleet) == [1] * 4
    PORTS["A"], PORTS["B"] = PORTS["B"], PORTS["A"]
    write(fleet, 1)
    fleet.up()
    assert {name: row.endpoints for name, row in fleet.rows().items()} == {
        name: row.endpoints for name, row in before.items()
    }
    assert values(fleet) == [1] * 4
    assert sum(row.restarts for row in fleet.rows().values()) == 0
