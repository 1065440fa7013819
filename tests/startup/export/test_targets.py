"""Who is scraped, where, and with which labels."""

from __future__ import annotations

from typing import Any

import pytest

from startup.export.targets import address, left_out, targets
from startup.spec.fleet import AgentSpec, Fleet, MachineSpec, ProgramTarget
from tests.startup.plan.builders import agent, aid, revision


def scraped(text: str, **keys: Any) -> AgentSpec:
    return agent(text, **({"health_port": 9000} | keys))


def fleet_of(*agents: AgentSpec, **hosts: str) -> Fleet:
    from dataclasses import replace

    machines = tuple(MachineSpec(name=name, host=host) for name, host in hosts.items())  # type: ignore[arg-type]
    fleet = revision(*agents).fleet
    return replace(fleet, machines=machines) if machines else fleet


def test_each_agent_is_found_at_its_machines_address_and_its_health_port() -> None:
    fleet = fleet_of(scraped("m/a"), scraped("far/b", health_port=9001), m="127.0.0.1", far="10.0.0.7")
    assert [target.address for target in targets(fleet)] == ["127.0.0.1:9000", "10.0.0.7:9001"]


def test_labels_say_which_agent_it_is_and_where() -> None:
    (target,) = targets(fleet_of(scraped("m/a", group="core", klass="standard")), versions={"m": "1.2.3"})
    assert target.labels() == {
        "instance": "m/a", "agent": "a", "machine": "m", "slot": "0", "group": "core", "class": "standard", "version": "1.2.3",
    }  # fmt: skip


def test_replicas_have_labels_of_their_own() -> None:
    from dataclasses import replace

    first = scraped("m/a")
    second = replace(first, id=first.id._replace(slot=1), health_port=9001)
    assert [(t.labels()["instance"], t.labels()["slot"]) for t in targets(fleet_of(first, second))] == [
        ("m/a", "0"), ("m/a#1", "1"),
    ]  # fmt: skip


def test_what_is_not_known_is_no_label() -> None:
    assert "version" not in targets(fleet_of(scraped("m/a")), versions={"other": "1"})[0].labels()


def test_who_is_stopped_or_switched_off_is_left_out_and_who_is_down_is_not() -> None:
    fleet = fleet_of(scraped("a"), scraped("off", enabled=False), scraped("bad", problem="syntax"), scraped("b"))
    assert [str(target.id) for target in targets(fleet, without={aid("b")})] == ["m/a"]


def test_what_does_not_say_where_it_tells_metrics_is_left_out_and_named() -> None:
    program = scraped("program", target=ProgramTarget(argv=("java",)))
    fleet = fleet_of(
        scraped("a"), program, scraped("mute", health_port=None), scraped("off", health_port=None, enabled=False)
    )
    assert [str(target.id) for target in targets(fleet)] == ["m/a"]
    assert left_out(fleet) == {"is no agentkit agent": [aid("program")], "has no health port": [aid("mute")]}


@pytest.mark.parametrize(("host", "told"), [("::1", "[::1]:80"), ("10.0.0.1", "10.0.0.1:80"), ("pc.lan", "pc.lan:80")])
def test_addresses_are_written_so_that_the_port_is_clear(host: str, told: str) -> None:
    assert address(host, 80) == told
