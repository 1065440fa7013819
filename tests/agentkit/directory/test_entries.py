"""What stands in Consul of an agent, and what is read from there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.directory.entries import MAX_META_VALUE, Entry, entries_of, entry_of
from agentkit.names import AgentId, Incarnation


def entry(id: str, incarnation: int = 1, **facts: Any) -> Entry:
    facts = {"cluster": "c", "endpoints": {"inbox-local": "tcp://127.0.0.1:10100"}} | facts
    return Entry(id=AgentId.parse(id), incarnation=Incarnation(incarnation), **facts)


def service(given: Entry, **changes: Any) -> dict[str, Any]:
    """As Consul tells it."""
    told = given.definition(15.0, None)
    return {"ID": told["ID"], "Service": told["Name"], "Meta": told["Meta"], "Port": told["Port"]} | changes


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,20}", fullmatch=True)
METHODS = st.fixed_dictionaries(
    {
        "timeouts_s": st.dictionaries(NAMES, st.floats(0.1, 1e6)),
        "traits": st.dictionaries(NAMES, st.dictionaries(NAMES, st.one_of(st.booleans(), st.text()))),
    }
)


@given(NAMES, NAMES, st.integers(0, 999), st.integers(0, 2**63), METHODS, st.sampled_from(["ready", "hibernated"]))
def test_what_was_registered_is_read_again(
    machine: str, name: str, slot: int, incarnation: int, methods: dict[str, Any], phase: Any
) -> None:
    id = f"{machine}/{name}" + (f"#{slot}" if slot else "")
    endpoints = {"inbox-local": "tcp://127.0.0.1:1", "inbox": "tcp://10.0.0.1:1"}
    facts = {"methods": methods, "phase": phase, "group": "g", "health_url": "http://10.0.0.1:2/health"}
    given = entry(id, incarnation, endpoints=endpoints, **facts)
    told = service(given)
    assert len(told["Meta"]) <= 64
    assert all(len(value) <= MAX_META_VALUE for value in told["Meta"].values())
    assert all(key.replace("-", "").isalnum() for key in told["Meta"])
    read = entry_of(told, "c")
    assert read is not None
    is_told = any(key.startswith("methods-") for key in told["Meta"])
    assert read.methods == (methods if is_told else {})
    assert (read.id, read.incarnation, read.phase, read.endpoints) == (given.id, incarnation, phase, endpoints)


@pytest.mark.parametrize(
    "changes",
    [
        {"Meta": None},
        {"Meta": {}},
        {"Meta": "text"},
        {"Service": "agentkit-other"},
        {"ID": "m/other"},
        {"Meta": {"agentkit": "1", "id": "m/a", "incarnation": "x", "inbox": "tcp://h:1"}},
        {"Meta": {"agentkit": "1", "id": "m/a", "incarnation": "1", "inbox": "ipc:///etc/passwd"}},
        {"Meta": {"agentkit": "1", "id": "m/a", "incarnation": "1"}},
        {"Meta": {"agentkit": "1", "id": "m/a", "incarnation": "1", "inbox": "tcp://h:1", "health": "file:///x"}},
        {"Meta": {"agentkit": "1", "id": "m/a", "incarnation": "1", "inbox": "tcp://h:1", "methods-0": "{"}},
    ],
)
def test_what_somebody_else_registered_is_no_agent(changes: dict[str, Any]) -> None:
    assert entries_of([service(entry("m/a"), **changes)], "c") == ({}, 1)


def test_of_two_lives_of_an_agent_the_newer_counts() -> None:
    found, _ = entries_of([service(entry("m/a", 2)), service(entry("m/a", 3)), service(entry("m/a", 1))], "c")
    assert found[entry("m/a").id].incarnation == 3


def test_an_entry_says_who_it_is_in_tags_and_address() -> None:
    told = entry("pc/a", group="g", klass="core", version="1.0", endpoints={"inbox": "tcp://10.1.1.1:99"}).definition(
        15, None
    )
    assert (told["ID"], told["Name"], told["Address"], told["Port"]) == ("pc/a", "agentkit-c", "10.1.1.1", 99)
    assert told["Tags"] == ["agent-a", "class-core", "group-g", "version-1.0", "machine-pc"]
    assert [check.get("TTL") for check in told["Checks"]] == ["15s"]


def test_the_ready_endpoint_is_checked_on_request() -> None:
    told = entry("pc/a", health_url="http://10.1.1.1:98/health").definition(15.0, 10.0)
    assert [check.get("HTTP") for check in told["Checks"]] == [None, "http://10.1.1.1:98/ready"]


def test_another_life_and_another_phase_are_registered_anew() -> None:
    digests = {entry("m/a").digest, entry("m/a", 2).digest, entry("m/a", phase="hibernated").digest}
    assert len(digests) == 3
    assert entry("m/a").digest == entry("m/a").digest
