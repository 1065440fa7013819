"""What goes before what: one call's word, the method's, the peer's, the agent's; and each time the file's before the class's."""

from __future__ import annotations

from typing import Any

import pytest

from agentkit.errors import ConfigError
from agentkit.resilience.policy import CallPolicies, CallPolicy, FilePolicy, ServePolicy


def policies(**file: Any) -> CallPolicies:
    return CallPolicies(
        CallPolicy(attempts=2, retry_wait_s=0.5, breaker_failures=7),
        {"A": CallPolicy(retry_wait_s=0.4, breaker_rest_s=1.0), "A.m": CallPolicy(retry_factor=4.0)},
        file=FilePolicy.read(file),
    )


def test_a_policy_knows_what_was_said_even_where_that_is_the_default() -> None:
    assert CallPolicy(attempts=3).said() == {"attempts": 3}
    assert CallPolicy(attempts=3) == CallPolicy(), "it is no other policy for that"
    assert CallPolicy(attempts=3).over(CallPolicy(attempts=1, key="k")).said() == {"attempts": 3, "key": "k"}


def test_what_is_said_of_a_peer_goes_before_what_is_said_of_all_key_by_key() -> None:
    found = policies()
    assert found.usual.attempts == 2
    assert found.of_peer("B") == found.usual
    a = found.of_peer("A")
    assert (a.attempts, a.retry_wait_s, a.breaker_rest_s, a.breaker_failures) == (2, 0.4, 1.0, 7)


def test_the_file_goes_before_the_class_where_both_speak_of_the_same() -> None:
    found = policies(calls={"attempts": 5, "retry_wait_s": 9.0}, to={"A": {"breaker_rest_s": 3.0}})
    assert found.usual.attempts == 5
    a = found.of_peer("A")
    assert (a.attempts, a.breaker_rest_s) == (5, 3.0)
    assert a.retry_wait_s == 0.4, "the class speaks of A, the file of all: who is more exact goes before"


def test_of_one_method_only_what_is_said_of_it_is_told() -> None:
    found = policies(to={"A.m": {"attempts": 1}})
    said = found.of_method("A", "m")
    assert said is not None
    assert said.said() == {"attempts": 1, "retry_factor": 4.0}
    assert found.of_method("A", "n") is None
    assert found.of_method("B", "m") is None


@pytest.mark.parametrize("peer", ["A", "pc2/A", "pc2/A#3"])
def test_a_peer_is_the_same_with_machine_and_slot(peer: str) -> None:
    assert policies(to={"A": {"attempts": 9}}).of_peer(peer).attempts == 9
    assert policies(to={"A": {"attempts": 9}, "pc2/A": {"attempts": 8}}).of_peer(peer).attempts == (
        9 if peer == "A" else 8
    )


@pytest.mark.parametrize(
    "table",
    [
        {"serve": {"runing": 1}},
        {"serve": {"running": "1"}},
        {"calls": {"attempts": 0}},
        {"calls": {"timeout_s": 0}},
        {"to": {"A": {"balance": "best"}}},
        {"to": ["A"]},
        {"serve": 5},
        {"methods": {"m": 5}},
    ],
)
def test_what_no_agent_can_be_told_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FilePolicy.read(table, at="AGENTKIT_POLICY")


def test_what_the_file_says_of_serving_is_laid_over_what_the_class_says() -> None:
    said = FilePolicy.read({"serve": {"queue": 5}}).serve
    assert said.over(ServePolicy(queue=1, running=3)) == ServePolicy(queue=5, running=3)
