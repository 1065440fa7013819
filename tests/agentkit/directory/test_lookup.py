"""Names and who is meant: records on the wire, ambiguity, the fixed table, and who of several gets the call."""

from __future__ import annotations

from typing import Any

import pytest

from agentkit.agent.dialing import Dialer
from agentkit.directory.base import AgentRecord, unambiguous
from agentkit.directory.static import StaticDirectory
from agentkit.errors import AgentUnknown, ConfigError, Unreachable
from agentkit.names import AgentId, Incarnation


def record(id: str, phase: str = "ready", **fields: Any) -> AgentRecord:
    endpoints = fields.pop("endpoints", {"inbox-local": "tcp://127.0.0.1:1"})
    return AgentRecord(
        id=AgentId.parse(id), incarnation=Incarnation(fields.pop("incarnation", 1)), phase=phase, endpoints=endpoints,
        **fields,
    )  # fmt: skip


def test_a_record_crosses_the_wire() -> None:
    one = record("m/A#2", timeouts_s={"slow": 60.0}, health_url="http://127.0.0.1:2", incarnation=2**63)
    assert AgentRecord.from_wire(one.to_wire()) == one
    assert one.to_wire()["id"] == "m/A#2"


def test_records_of_older_and_newer_nodes_are_read() -> None:
    wire = record("m/A", traits={"get": {"idempotent": True}}, health="degraded").to_wire()
    older = {name: value for name, value in wire.items() if name not in ("traits", "health")}
    assert AgentRecord.from_wire(older) == record("m/A")
    assert AgentRecord.from_wire(wire | {"colour": "blue"}).traits == {"get": {"idempotent": True}}


A1, A1B, A2, B2 = record("m1/A"), record("m1/A#1"), record("m2/A"), record("m2/B")


@pytest.mark.parametrize(
    ("name", "here", "meant"),
    [
        ("A", "m1", (A1, A1B)),
        ("A", "m2", (A2,)),
        ("A#1", "m2", (A1B,)),
        ("A#0", "m1", (A1,)),
        ("m1/A", "m2", (A1, A1B)),
        ("m1/A#1", None, (A1B,)),
        ("B", "m1", (B2,)),
        ("B", None, (B2,)),
    ],
)
def test_a_bare_name_means_this_machines_agent_else_the_only_other(
    name: str, here: str | None, meant: tuple[AgentRecord, ...]
) -> None:
    assert unambiguous(name, (A1, A1B, A2, B2), here=here) == meant


@pytest.mark.parametrize("here", [None, "m3"])
def test_a_name_on_several_machines_is_ambiguous_and_the_error_lists_them(here: str | None) -> None:
    with pytest.raises(AgentUnknown, match="'A' is ambiguous: say m1/A, m2/A") as caught:
        unambiguous("A", (A1, A2), here=here)
    assert caught.value.details["machines"] == ["m1", "m2"]
    assert caught.value.retry_safe


def test_an_unknown_name_says_whether_the_directory_could_be_asked() -> None:
    with pytest.raises(AgentUnknown, match="no agent called 'C'") as caught:
        unambiguous("C", (A1,), here="m1")
    assert not caught.value.directory_stale
    with pytest.raises(AgentUnknown, match="can't be asked") as caught:
        unambiguous("C", (A1,), here="m1", stale=True)
    assert caught.value.directory_stale


async def test_the_fixed_table_answers_from_what_it_was_given_and_what_was_put() -> None:
    table = StaticDirectory({"A": "tcp://h:1", "m2/A#1": "tcp://h:2"}, here="m1")
    assert [r.endpoints["inbox-local"] for r in await table.lookup("A")] == ["tcp://h:1"]
    assert [str(r.id) for r in table.cached("m2/A")] == ["m2/A#1"]
    version = table.version
    table.put(record("m1/A", "stopped"))
    assert table.version > version
    assert table.cached("A")[0].phase == "stopped"
    assert [str(id) for id in await table.names()] == ["m1/A", "m2/A#1"]
    await table.close()


def test_a_fixed_table_with_a_malformed_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="agent id"):
        StaticDirectory({"m1/#": "tcp://h:1"})


def test_loopback_is_for_the_same_machine_and_its_address_for_others() -> None:
    both = record("m1/A", endpoints={"inbox-local": "tcp://127.0.0.1:1", "inbox": "tcp://10.0.0.1:1"})
    assert Dialer("m1").where(both) == ("tcp://127.0.0.1:1", None)
    assert Dialer("m2").where(both) == ("tcp://10.0.0.1:1", None)
    assert Dialer("m2").where(A1) == ("tcp://127.0.0.1:1", None), "logical machines of one host"
    with pytest.raises(Unreachable, match="m1/A has no inbox: it is starting"):
        Dialer("m1").where(record("m1/A", "starting", endpoints={}))
