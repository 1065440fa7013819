"""What a fleet is kept to: order, restarts within a budget, tasks, and what an operator stopped."""

from __future__ import annotations

from typing import Any

import pytest

from startup.plan.phase import Health, Phase
from tests.faults.scratch import Scratch, kill

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = '''
    from __future__ import annotations
    import asyncio, os
    from agentkit import AgentConfig, BaseAgent, rpc

    def tell(line: str) -> None:
        with open("told", "a") as file:
            file.write(line + "\\n")

    class Ordered(BaseAgent):
        """Tells when it begins, is ready to be called, is called, and ends; calls those it needs at its start."""
        class Config(AgentConfig):
            calls: tuple[str, ...] = ()

        async def on_start(self) -> None:
            tell(f"starts {self.name}")
            for name in self.config.calls:
                tell(f"{self.name} got {await self.call(name, 'greet', timeout=10)}")
            tell(f"started {self.name}")

        @rpc
        async def greet(self) -> str:
            return self.name

        async def on_stop(self) -> None:
            tell(f"stops {self.name}")
            await asyncio.sleep(0.05)
            tell(f"stopped {self.name}")

    class Crashes(BaseAgent):
        """Comes up, then fails."""
        async def run(self) -> None:
            await asyncio.sleep(0.02)
            raise RuntimeError("the feed ended")

    class Recovers(BaseAgent):
        """Fails twice, then comes up."""
        async def on_start(self) -> None:
            tell("attempt")
            with open("told") as file:
                if len(file.readlines()) < 3:
                    raise ConnectionError("not yet")
'''


def ordered(*needs: str) -> dict[str, Any]:
    return {"agent": "kept:Ordered", "dependencies": list(needs), "config": {"calls": list(needs)}}


@pytest.fixture
def fleet(fleet: Scratch) -> Scratch:
    fleet.python("kept.py", AGENTS)
    return fleet


def test_dependencies_are_ready_before_and_gone_after_those_who_need_them(fleet: Scratch) -> None:
    needs = {"Top": ["Left", "Right"], "Left": ["Base"], "Right": ["Base"], "Base": [], "Aside": []}
    fleet.write({name: ordered(*names) for name, names in needs.items()})
    fleet.up()
    told = fleet.told()
    assert sum(line.startswith("started ") for line in told) == len(needs)
    for name, below in needs.items():
        for needed in below:
            assert told.index(f"started {needed}") < told.index(f"starts {name}")
            assert f"{name} got {needed}" in told
    assert fleet.run("down").code == 0
    told = fleet.told()
    for name, below in needs.items():
        for needed in below:
            assert told.index(f"stopped {name}") < told.index(f"stops {needed}")


def test_order_holds_between_two_machines() -> None:
    with Scratch(machines=("m1", "m2")) as fleet:
        fleet.python("kept.py", AGENTS)
        fleet.write(
            {
                "A": ordered() | {"machine": "m2"},
                "B": ordered("A") | {"machine": "m1"},
                "C": ordered("B") | {"machine": "m2"},
            }
        )
        fleet.up()
        chain = [line for line in fleet.told() if line.startswith("start")]
        assert chain == [f"{what} {name}" for name in "ABC" for what in ("starts", "started")]
        assert fleet.run("down").code == 0
        assert fleet.told()[-6:] == [f"{what} {name}" for name in "CBA" for what in ("stops", "stopped")]


def test_a_crashing_agent_is_restarted_within_its_budget_then_failed_and_status_says_why(fleet: Scratch) -> None:
    policy = {"delay": "10ms", "factor": 1, "max_attempts": 3, "window": "300s", "retry_failed_after": "0s"}
    fleet.write(
        {"Crashes": {"agent": "kept:Crashes", "restart": policy}, "Needs": ordered() | {"dependencies": ["Crashes"]}}
    )
    fleet.run("up", "fleet.yaml", "--no-wait")
    row = fleet.wait_phase(Phase.FAILED, "Crashes")["Crashes"]
    assert (row.restarts, row.pid, row.reason) == (3, None, "run raised RuntimeError: the feed ended")
    assert fleet.log("Crashes").count("RuntimeError: the feed ended") >= 4
    told = fleet.run("status", "Crashes")
    assert "failed: run raised RuntimeError: the feed ended" in told.out
    assert "restarts     3" in told.out
    # an operator who asks for it gets a new budget
    result = fleet.run("restart", "Crashes", "--json")
    row = fleet.wait(lambda rows: rows["Crashes"].phase is Phase.FAILED)["Crashes"]
    assert result.code in (0, 1)  # it was ready for a moment, which the command may have seen
    assert "the feed ended" in row.reason


def test_an_agent_that_recovers_within_its_budget_makes_up_succeed(fleet: Scratch) -> None:
    fleet.write({"Recovers": {"agent": "kept:Recovers", "restart": {"delay": "10ms", "max_attempts": 3}}})
    told = fleet.up()
    assert told["ready"] == 1
    assert told["agents"][0]["restarts"] == 2


def test_a_crashed_dependency_degrades_nobody_for_good(fleet: Scratch) -> None:
    fleet.write({"Base": ordered(), "Top": ordered("Base")})
    fleet.up()
    before = fleet.rows()
    kill(before["Base"].pid)
    fleet.wait_restarted("Base", before["Base"])
    after = fleet.wait(lambda rows: rows["Top"].health is Health.OK and rows["Base"].phase is Phase.READY)
    assert after["Top"].pid == before["Top"].pid


def test_a_task_completes_and_those_who_wait_for_that_start_then(fleet: Scratch) -> None:
    fleet.python("migrate.py", 'open("told", "a").write("migrated\\n")\n')
    program = {"script_path": "migrate.py", "kind": "task", "ready": {"after": "0s"}}
    after = ordered() | {"dependencies": [{"name": "Migrate", "condition": "completed"}]}
    fleet.write({"Migrate": program | {"agent": None}, "Server": after})
    told = fleet.up()
    assert {agent["name"]: agent["phase"] for agent in told["agents"]} == {"Migrate": "completed", "Server": "ready"}
    assert fleet.told()[:2] == ["migrated", "starts Server"]
    # it is not run again by the next `up`, nor by a new node
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    fleet.up()
    assert fleet.told().count("migrated") == 1


def test_what_an_operator_stopped_stays_stopped_until_up_whatever_dies(fleet: Scratch) -> None:
    fleet.write({"Base": ordered(), "Top": ordered("Base")})
    fleet.up()
    assert fleet.run("stop", "Base").code == 0
    row = fleet.wait(lambda rows: rows["Top"].health is Health.DEGRADED)["Top"]
    assert (row.phase, row.reason) == (Phase.READY, "Base stopped by operator")
    node = fleet.node_pid()
    kill(node)
    fleet.wait_for_another_node(node)
    rows = fleet.wait_phase(Phase.STOPPED, "Base")
    assert rows["Base"].reason == "stopped by operator"
    assert rows["Top"].phase is Phase.READY
    assert fleet.up()["ready"] == 2


def test_a_fleet_with_a_failed_optional_agent_is_up(fleet: Scratch) -> None:
    fleet.write({"Plain": {}, "Extra": {"agent": "fleet_agents:Broken", "required": False}})
    result = fleet.run("up", "fleet.yaml", "--json")
    assert (result.code, result.json["ready"]) == (0, 1)
    assert [found["agent"] for found in result.json["failed"]] == ["Extra"]


def test_variables_of_the_operators_environment_are_filled_in_once(
    fleet: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = {"config": {"words": "${GREETING:-hello} $$HOME"}, "env": {"SEEN": "${PLACE}"}}
    ports = {"port": "${PORT_OFFSET:-0}+11400", "health_check_port": "${PORT_OFFSET:-0}+11401"}
    fleet.write({"A": agent | ports})
    unset = fleet.run("validate", "fleet.yaml", "--json")
    assert unset.code == 2
    assert any("PLACE" in problem["found"] for problem in unset.json["problems"])
    monkeypatch.setenv("PLACE", "here: 'and' there")
    monkeypatch.setenv("PORT_OFFSET", "40")
    monkeypatch.setenv("GREETING", "hi ${PLACE}")
    (told,) = fleet.up()["agents"]
    assert told["endpoint"] == "tcp://127.0.0.1:11440"
    assert told["health_url"].startswith("http://127.0.0.1:11441/")
    assert "started with hi ${PLACE} $HOME" in fleet.log("A")  # values are not read again
