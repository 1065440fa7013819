"""What one node tells of the whole cluster, and how little of it at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agentkit.clock import SYSTEM_CLOCK
from agentkit.errors import BadRequest, ConfigError
from agentkit.names import AgentId
from startup.node import views
from startup.node.views import Views
from tests.startup.plan.builders import aid


@dataclass
class Machine:
    """A machine with logs in a folder; others ask its `views` as a mesh would."""

    name: str
    folder: Path
    network: dict[str, Machine]
    ahead_s: float = 0.0
    views: Views = field(init=False)

    def __post_init__(self) -> None:
        self.views = Views(self.name, self, self)
        self.network[self.name] = self

    def own(self) -> dict[str, Any]:
        return {"machine": self.name, "node": {"pid": 1}, "revision": None}

    async def memory_mb(self) -> Mapping[str, float]:
        return {f"{self.name}/A": 1.5}

    def log_of(self, id: AgentId) -> str:
        return str(self.folder / f"{id.instance}.log") if id.machine == self.name else ""

    def events_seen(self) -> dict[str, Any]:
        return {"relay": None, "agents": [self.name]}

    def others(self) -> list[str]:
        return sorted(self.network.keys() - {self.name} | {"away"})

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any:
        assert within_s == views.OTHERS_S
        if machine not in self.network:
            return None
        told = await self.network[machine].views.answers[method](said)
        if "times_s" in told:
            told["times_s"] = [time_s + self.network[machine].ahead_s for time_s in told["times_s"]]
        return told

    def log(self, instance: str, *lines: str) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"{instance}.log").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


@pytest.fixture
def network(tmp_path: Path) -> dict[str, Machine]:
    network: dict[str, Machine] = {}
    for name in ("a", "b"):
        Machine(name, tmp_path / name, network)
    return network


async def test_one_node_tells_of_all_and_which_did_not_answer(network: dict[str, Machine]) -> None:
    network["b"].ahead_s = 3600.0
    memory, others = await network["a"].views.nodes(memory=True, but=())
    assert memory == {"a/A": 1.5, "b/A": 1.5}
    assert others["away"] is None
    assert others["b"]["machine"] == "b"
    assert 3599 < others["b"]["clock_s"] < 3601
    assert (await network["a"].views.nodes(memory=True, but=["b", "away"]))[1] == {}
    assert await network["a"].views.nodes(memory=False, but=None) == ({}, {})
    seen = (await network["b"].views.operations["events_seen"]({}))["machines"]
    assert (seen["a"]["agents"], seen["b"]["agents"], seen["away"]) == (["a"], ["b"], None)


async def test_logs_of_all_machines_are_told_by_any_then_what_came(network: dict[str, Machine]) -> None:
    network["a"].log("A", "one", "two")
    network["b"].log("B", "three", "four", "five")
    ask = network["a"].views.operations["logs"]
    told = (await ask({"agents": {"a/A": None, "b/B": None, "away/C": None}, "lines": 2}))["machines"]
    assert told["a"]["agents"]["a/A"]["lines"] == ["one", "two"]
    assert told["b"]["agents"]["b/B"]["lines"] == ["four", "five"]
    assert told["away"] is None
    cursor = told["b"]["agents"]["b/B"]["cursor"]
    network["b"].log("B", "six")
    told = (await ask({"agents": {"b/B": cursor}}))["machines"]
    assert told["b"]["agents"]["b/B"]["lines"] == ["six"]
    assert "a" not in told


async def test_an_answer_about_logs_is_bounded_and_asking_again_brings_the_rest(
    network: dict[str, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MAX_ANSWER_BYTES", 1000)
    monkeypatch.setattr(views, "MAX_PIECE_BYTES", 600)
    lines = [f"{n:050}" for n in range(40)]
    for name in ("A", "B", "C"):
        network["b"].log(name, *lines)
    ask = network["a"].views.operations["logs"]
    asked: dict[str, int | None] = {"b/A": 0, "b/B": 0, "b/C": 0}
    found: dict[str, list[str]] = {id: [] for id in asked}
    questions = 0
    while asked:
        agents = (await ask({"agents": asked}))["machines"]["b"]["agents"]
        assert 0 < sum(len(line) + 1 for piece in agents.values() for line in piece["lines"]) <= 1000 + len(agents)
        questions += 1
        for id, piece in agents.items():
            found[id] += piece["lines"]
            if piece["more"]:
                asked[id] = piece["cursor"]
            else:
                del asked[id]
    assert all(told == lines for told in found.values())
    assert questions >= 6
    told = (await ask({"agents": {"b/A": None}, "lines": 40}))["machines"]["b"]["agents"]["b/A"]
    assert told["lines"] == lines[-11:]
    assert told["more"]


async def test_questions_that_would_cost_much_are_refused(network: dict[str, Machine]) -> None:
    ask = network["a"].views.operations["logs"]
    with pytest.raises(BadRequest, match="5,001 agents in one question"):
        await ask({"agents": {f"b/A{n}": None for n in range(views.MAX_AGENTS + 1)}})
    with pytest.raises(ConfigError, match="want machine/name"):
        await ask({"agents": {"../../etc/passwd": None}})


async def test_logs_of_strangers_are_empty(network: dict[str, Machine]) -> None:
    answer = await network["b"].views.answers["mesh.logs"]({"agents": {"a/A": None}, "lines": 5})
    assert answer["agents"]["a/A"] == {"lines": [], "cursor": 0, "more": False}
    heard_s, answered_s = answer["times_s"]
    assert heard_s <= answered_s <= SYSTEM_CLOCK.wall_s()
    assert aid("a/A") == AgentId.parse("a/A")
