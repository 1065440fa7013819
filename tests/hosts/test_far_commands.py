"""Commands of one machine about the other: what they show, what they change, and what they say when it can't be reached."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hosts.conftest import Hosts, demand
from tests.hosts.machines import clock_library
from tests.hosts.projects import agents, install, typed, until

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_either_machine_shows_and_changes_the_whole_cluster_and_says_when_it_can_not(hosts: Hosts) -> None:
    a, b, link = hosts
    install(a, b, agents={"Near": a.name, "Far": b.name})
    up = typed(a, "up", "--json")
    assert up.code == 0, up.err
    for machine in (a, b):
        assert {id: it["phase"] for id, it in agents(machine).items()} == {"main_pc/Near": "ready", "pc2/Far": "ready"}
        lines = typed(machine, "logs", "--json").json["lines"]
        assert {line["agent"] for line in lines} == {"main_pc/Near", "pc2/Far"}
    assert "started with hello" in typed(a, "status", "Far").out

    before = agents(a)["pc2/Far"]["pid"]
    assert typed(a, "restart", "Far").code == 0
    assert agents(b)["pc2/Far"]["pid"] != before
    stopped = typed(b, "stop", "Near")
    assert stopped.code == 0, stopped.err
    assert agents(a)["main_pc/Near"]["phase"] == "stopped"
    assert typed(b, "start", "Near").code == 0

    checks = {it["name"]: it["verdict"] for it in typed(a, "doctor", "--json").json["checks"]}
    of_pc2 = ("address", "node port", "way there", "clock")
    assert [checks[f"pc2: {name}"] for name in of_pc2] == ["ok", "ok", "ok", "ok"]

    link.cut()
    until(lambda: agents(a)["pc2/Far"]["phase"] == "unreachable")
    status = typed(a, "status")
    assert status.code == 0
    assert "pc2: unreachable for " in status.out
    assert "nothing heard of pc2 for" in status.out
    unreached: dict[str, Any] = {}
    for words in (("stop", "Near"), ("restart", "Near", "Far")):
        result = typed(a, *words, "--json")
        assert result.code == 1, (words, result)
        assert "pc2" in result.err
        unreached[words[0]] = [it["machine"] for it in result.json["unreached"]]
    assert unreached == {"stop": ["pc2"], "restart": ["pc2"]}

    link.heal()
    assert agents(b)["pc2/Far"]["phase"] == "ready"
    again = typed(a, "up", "--json")
    assert again.code == 0, again.err
    numbers = [node["revision"]["number"] for node in typed(a, "status", "--json").json["nodes"]]
    assert len(numbers) == 2
    assert len(set(numbers)) == 1
    assert typed(b, "down").code == 0


def test_a_clock_that_is_an_hour_ahead_is_told_of_and_changes_no_order(hosts: Hosts) -> None:
    a, b, link = hosts
    demand("" if clock_library() else "Debian's package faketime is missing")
    b.off()
    b.offset_clock("+1h")
    install(a, b, agents={"Near": a.name, "Far": b.name})
    b.on()
    link.plug()
    assert typed(a, "up").code == 0
    assert "its clock 1h00m ahead" in typed(a, "status").out
    assert all(0 <= agent["uptime_s"] < 600 for agent in agents(a).values())
    assert typed(a, "restart", "Far").code == 0
    assert typed(a, "restart", "Near").code == 0
    told = typed(a, "logs", "--json").json
    started = [line["agent"] for line in told["lines"] if line["message"].startswith("started with")]
    assert started[-2:] == ["pc2/Far", "main_pc/Near"]
    assert "the clock of pc2 is 1h00m ahead of this machine's" in told["notes"][0]
    assert typed(b, "down").code == 0
