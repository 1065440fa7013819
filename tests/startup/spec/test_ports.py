from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agentkit.names import AgentId
from startup.spec.ports import Claim, PortBook, ports_of
from startup.spec.units import PortRange
from tests.startup.spec.projects import agents, loaded, of, one

PORTS = st.sets(st.integers(100, 119))


def claim(port: int, owner: str = "x", host: str = "127.0.0.1", what: str = "service port") -> Claim:
    return Claim(host=host, port=port, owner=owner, what=what)


@given(PORTS, PORTS)
def test_the_lowest_free_port_is_free_and_lowest(taken: set[int], never: set[int]) -> None:
    book = PortBook((claim(port) for port in taken), never=never)
    found = book.lowest_free("127.0.0.1", PortRange(100, 119))
    assert found == min(set(range(100, 120)) - taken - never, default=None)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from("abc"))))
def test_clashes_are_found_exactly_where_two_owners_share_a_port(claims: list[tuple[int, str]]) -> None:
    book = PortBook(claim(port, owner) for port, owner in claims)
    owners: dict[int, set[str]] = {}
    for port, owner in claims:
        owners.setdefault(port, set()).add(owner)
    assert {first.port for first, _ in book.clashes()} == {port for port, those in owners.items() if len(those) > 1}


def test_hosts_have_their_own_ports() -> None:
    assert not list(PortBook([claim(5, "a", "10.0.0.1"), claim(5, "b", "10.0.0.2")]).clashes())


def test_missing_ports_are_the_lowest_free_ones_of_the_class_in_file_order(tmp_path: Path) -> None:
    fleet = loaded(tmp_path, agents("A: {agent: 'm:C'}\nB: {agent: 'm:C', port: 10102}\nC: {agent: 'm:C'}")).fleet
    assert fleet is not None
    assert [(spec.port, spec.health_port) for spec in fleet.agents] == [(10100, 10101), (10102, 10103), (10104, 10105)]


def test_ports_given_out_are_kept_when_others_come_and_go(tmp_path: Path) -> None:
    before = loaded(tmp_path, agents("A: {agent: 'm:C'}\nB: {agent: 'm:C'}")).fleet
    assert before is not None
    after = loaded(tmp_path, agents("N: {agent: 'm:C'}\nB: {agent: 'm:C'}"), previous_ports=ports_of(before)).fleet
    assert after is not None
    assert {spec.id.instance: (spec.port, spec.health_port) for spec in after.agents} == {
        "N": (10100, 10101),
        "B": (10102, 10103),
    }


def test_a_written_port_wins_over_one_that_was_given_out(tmp_path: Path) -> None:
    previous = {AgentId.parse("local/B"): (10100, 10101)}
    fleet = loaded(tmp_path, agents("A: {agent: 'm:C', port: 10100}\nB: {agent: 'm:C'}"), previous_ports=previous).fleet
    assert fleet is not None
    assert [(spec.port, spec.health_port) for spec in fleet.agents] == [(10100, 10102), (10103, 10101)]


def test_slot_zero_takes_the_port_and_the_others_the_next_free_ones(tmp_path: Path) -> None:
    fleet = loaded(
        tmp_path, agents("A: {agent: 'm:C', port: 10150, replicas: 3}\nB: {agent: 'm:C', port: 10151}")
    ).fleet
    assert fleet is not None
    assert [spec.port for spec in fleet.agents] == [10150, 10152, 10153, 10151]
    assert [spec.id.instance for spec in fleet.agents] == ["A", "A#1", "A#2", "B"]


def test_an_offset_shifts_every_port_and_its_range_but_not_what_is_made_from_it(tmp_path: Path) -> None:
    text = agents(
        "A: {agent: 'm:C', class: core, port: 10110}\nB: {agent: 'm:C'}\nD: {agent: 'm:C', port: '${PORT_OFFSET:-0}+10120'}"
    )
    text = "machines: {one: {node_port: 10001}}\n" + text
    found = loaded(tmp_path, text, port_offset=1000)
    assert found.fleet is not None
    assert not found.problems
    assert [spec.port for spec in found.fleet.agents] == [11110, 11101, 11120]
    assert found.fleet.machines[0].node_port == 11001


def test_a_full_range_is_an_error(tmp_path: Path) -> None:
    found = loaded(tmp_path, "port_ranges: {core: 10100-10101}\n" + agents("A: {agent: 'm:C'}\nB: {agent: 'm:C'}"))
    assert [problem.at for problem in of(found, "port-range")] == [
        "agent_groups.core.B.port",
        "agent_groups.core.B.health_check_port",
    ]
    assert found.fleet is None


def test_programs_get_a_service_port_and_no_health_port(tmp_path: Path) -> None:
    fleet = loaded(tmp_path, agents("A: {command: [sleep, 1]}")).fleet
    assert fleet is not None
    assert (fleet.agents[0].port, fleet.agents[0].health_port) == (10100, None)
    assert fleet.agents[0].ready.tcp_port == 10100
    assert fleet.agents[0].sockets == "self"


def test_a_port_that_two_agents_write_is_an_error_with_both_places_and_a_free_one(tmp_path: Path) -> None:
    problem = one(
        loaded(tmp_path, agents("A: {agent: 'm:C', port: 10110}\nB: {agent: 'm:C', port: 10110}")), "port-clash"
    )
    assert problem.place.endswith("fleet.yaml:6")
    assert "local/A" in problem.found
    assert "fleet.yaml:5" in problem.found
    assert problem.fix == "10102 is free"


def test_two_machines_of_one_host_share_their_ports_and_two_hosts_do_not(tmp_path: Path) -> None:
    both = agents("A: {agent: 'm:C', port: 10110, machine: a}\nB: {agent: 'm:C', port: 10110, machine: b}")
    shared = "machines: {a: {host: localhost}, b: {host: 127.0.0.1}}\n"
    apart = "security: none\nmachines: {a: {}, b: {host: 203.0.113.5, node_port: 10001}}\n"
    assert of(loaded(tmp_path, shared + both), "port-clash")
    assert not of(loaded(tmp_path, apart + both), "port-clash")


def test_service_health_and_node_ports_clash_with_each_other(tmp_path: Path) -> None:
    text = "machines: {a: {node_port: 10110}}\n" + agents(
        "A: {agent: 'm:C', port: 10110}\nB: {agent: 'm:C', port: 10120, health_check_port: 10120}"
    )
    found = of(loaded(tmp_path, text), "port-clash")
    assert [problem.at for problem in found] == ["agent_groups.core.A.port", "agent_groups.core.B.health_check_port"]


def test_ports_named_in_config_clash_when_they_are_the_agents_own(tmp_path: Path) -> None:
    text = agents(
        """A: {agent: 'm:C', port: 10110}
        B: {agent: 'm:C', config: {server: {metrics_port: 10110}}}
        D: {agent: 'm:C', port: 10140, config: {port: 10140}}"""
    )
    problem = one(loaded(tmp_path, text), "port-clash")
    assert (problem.severity, problem.at) == ("error", "agent_groups.core.B.config.server.metrics_port")


def test_a_config_port_that_names_another_agent_is_a_warning_unless_it_is_a_dependency(tmp_path: Path) -> None:
    text = "A: {agent: 'm:C', port: 10110}\nB: {agent: 'm:C', config: {worker_port: 10110}"
    assert one(loaded(tmp_path, agents(text + "}")), "port-clash").severity == "warning"
    assert not of(loaded(tmp_path, agents(text + ", dependencies: [A]}")), "port-clash")
    elsewhere = "A: {agent: 'm:C', port: 10110}\nB: {agent: 'm:C', config: {worker_host: x, worker_port: 10110}}"
    assert not of(loaded(tmp_path, agents(elsewhere)), "port-clash")


def test_disabled_agents_do_not_clash(tmp_path: Path) -> None:
    text = agents("A: {agent: 'm:C', port: 10110}\nB: {agent: 'm:C', port: 10110, enabled: false}")
    assert not of(loaded(tmp_path, text), "port-clash")


def test_a_port_out_of_the_range_of_an_explicit_class_is_an_error_and_of_a_group_is_none(tmp_path: Path) -> None:
    assert (
        one(loaded(tmp_path, agents("A: {agent: 'm:C', class: core, port: 10500}")), "port-range").want == "10100-10199"
    )
    assert not loaded(tmp_path, agents("A: {agent: 'm:C', port: 10500}")).problems


def test_a_forbidden_port_is_an_error_outside_class_gateway(tmp_path: Path) -> None:
    assert one(loaded(tmp_path, agents("A: {agent: 'm:C', port: 8080}")), "port-forbidden").severity == "error"
    gateway = loaded(tmp_path, agents("A: {agent: 'm:C', class: gateway, port: 8080, health_check_port: 10100}"))
    assert not gateway.problems


def test_a_port_above_65535_is_an_error_written_or_shifted(tmp_path: Path) -> None:
    assert one(loaded(tmp_path, agents("A: {agent: 'm:C', port: 70000}")), "value").want == "at most 65535"
    shifted = loaded(tmp_path, agents("A: {agent: 'm:C', port: 60000}"), port_offset=10_000)
    assert "70000" in one(shifted, "port-too-high").found
