"""More and fewer slots of an agent, without its file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError
from agentkit.names import AgentId
from startup.cli.rollout import limit_of
from startup.cli.scale import numbers_of, rescaled
from startup.spec.fleet import Dependency, Fleet, MachineSpec, ReadyWhen
from startup.spec.ports import ports_of
from startup.spec.scale import scaled
from tests.startup.plan.builders import agent, aid, revision


def fleet_of(*specs: Any, **keys: Any) -> Fleet:
    return replace(revision(*specs).fleet, port_ranges={"standard": (7000, 7009)}, **keys)


def slots(fleet: Fleet, name: str = "A") -> dict[int, int]:
    return {spec.id.slot: spec.port for spec in fleet.agents if spec.name == name}


def test_new_slots_take_the_next_free_ports_and_lowest_slots_stay() -> None:
    fleet = fleet_of(agent("A", port=7000), agent("B", port=7001), forbidden_ports=(7002,))
    four = scaled(fleet, {"m/A": 4}, {})
    assert slots(four) == {0: 7000, 1: 7003, 2: 7004, 3: 7005}
    assert [spec.id.instance for spec in four.agents] == ["A", "A#1", "A#2", "A#3", "B"]
    two = scaled(four, {"m/A": 2}, {})
    assert slots(two) == {0: 7000, 1: 7003}
    assert scaled(two, {"m/A": 1}, {}) == fleet


def test_a_slot_that_comes_back_gets_the_port_that_it_had() -> None:
    fleet = scaled(fleet_of(agent("A", port=7000), agent("B", port=7001)), {"m/A": 3}, {})
    again = scaled(
        fleet_of(agent("A", port=7000), agent("C", port=7005), agent("B", port=7001)), {"m/A": 3}, ports_of(fleet)
    )
    assert slots(again) == slots(fleet)
    taken = scaled(fleet_of(agent("A", port=7000), agent("C", port=7002)), {"m/A": 3}, ports_of(fleet))
    assert slots(taken) == {0: 7000, 1: 7001, 2: 7003}


def test_ports_of_nodes_of_configs_and_of_other_names_of_the_host_are_not_given_out() -> None:
    specs = [agent("m/A", port=7000, health_port=7001, config={"metrics_port": 7002}), agent("n/B", port=7003)]
    fleet = fleet_of(
        *specs, machines=(MachineSpec(name=aid("m/A").machine, node_port=7004), MachineSpec(name=aid("n/B").machine))
    )
    found = [spec for spec in scaled(fleet, {"m/A": 2}, {}).agents if spec.id.slot == 1]
    assert [(spec.port, spec.health_port) for spec in found] == [(7005, 7006)]


def test_each_slot_probes_its_own_port() -> None:
    by_tcp = scaled(fleet_of(agent("A", port=7000, ready=ReadyWhen(tcp_port=7000))), {"m/A": 2}, {})
    assert [spec.ready.tcp_port for spec in by_tcp.agents] == [7000, 7001]
    by_http = scaled(
        fleet_of(agent("A", port=7000, ready=ReadyWhen(http_url="http://127.0.0.1:7000/up"))), {"m/A": 2}, {}
    )
    assert by_http.agents[1].ready.http_url == "http://127.0.0.1:7001/up"


def test_who_depends_on_all_slots_depends_on_those_that_there_are() -> None:
    first = AgentId(aid("A").machine, aid("A").name, 1)
    one = replace(agent("C"), dependencies=(Dependency(name="A#1", agents=(first,)),))
    fleet = scaled(fleet_of(agent("A", port=7000), agent("B", "A", port=7009), one), {"m/A": 3}, {})
    by_name = {spec.name: [str(id) for id in spec.dependencies[0].agents] for spec in fleet.agents if spec.dependencies}
    assert by_name == {"B": ["m/A", "m/A#1", "m/A#2"], "C": ["m/A#1"]}


@pytest.mark.parametrize("keys", [{"klass": "gateway"}, {"port": 7009}])
def test_without_a_free_port_it_is_refused(keys: dict[str, Any]) -> None:
    others = [agent(f"X{n}", port=7000 + n) for n in range(9)]
    with pytest.raises(ConfigError, match="port"):
        scaled(fleet_of(agent("A", **{"port": 7009, **keys}), *others), {"m/A": 2}, {})


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_the_last_number_decides_whatever_came_before(numbers: list[int]) -> None:
    fleet = fleet_of(agent("A", port=7000), agent("B", "A", port=7001))
    found = fleet
    for number in numbers:
        found = scaled(found, {"m/A": number}, ports_of(found))
        ports = [port for spec in found.agents for port in spec.ports]
        assert len(ports) == len(set(ports))
    assert found == scaled(fleet, {"m/A": numbers[-1]}, {})


def test_the_command_line_names_agents_and_numbers() -> None:
    known = [aid("m/A"), aid("m/B"), aid("n/B"), AgentId(aid("m/A").machine, aid("m/A").name, 1)]
    assert numbers_of(["A=3", "n/B=2"], known) == {"m/A": 3, "n/B": 2}
    for words, match in (
        (["A"], "an agent and a number"), (["A=x"], "an agent and a number"), (["A=1001"], "from 1 to 1000"), (["A=-1"], "number"),
        (["A#1=2"], "an agent"), (["A=0"], "agentkit stop A"), (["X=1"], "an agent of this cluster"), (["B=2"], "several machines"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            numbers_of(words, known)


def test_what_was_scaled_is_kept_in_the_revision_and_what_was_stopped_with_a_slot_is_not() -> None:
    before = replace(revision(agent("A", port=7000)), fleet=fleet_of(agent("A", port=7000)))
    three = rescaled(before, {"m/A": 3})
    assert three.scaled == {"m/A": 3}
    stopped = replace(three, stopped=frozenset({AgentId(aid("A").machine, aid("A").name, 2), aid("A")}))
    assert rescaled(stopped, {"m/A": 2}).stopped == {aid("A")}


@pytest.mark.parametrize(
    ("text", "changed", "limit"),
    [("1", 84, 1), ("3", 2, 3), ("25%", 84, 21), ("10%", 4, 1), ("100%", 84, 84), ("50%", 0, 1)],
)
def test_a_part_of_those_that_change_is_at_least_one(text: str, changed: int, limit: int) -> None:
    assert limit_of(text, changed) == limit
