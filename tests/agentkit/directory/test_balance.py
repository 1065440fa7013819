"""Who of several instances gets a call."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.directory.balance import DEGRADED_PARTS, candidates, choose
from agentkit.directory.base import AgentRecord
from agentkit.errors import Unreachable
from agentkit.names import AgentId, Incarnation
from agentkit.resilience.policy import BALANCES, Balance


def record(slot: int, phase: str = "ready", health: str = "ok", **facts: Any) -> AgentRecord:
    facts.setdefault("endpoints", {"inbox-local": "tcp://127.0.0.1:1"})
    return AgentRecord(
        id=AgentId.parse(f"m/A#{slot}"), incarnation=Incarnation(slot + 1), phase=phase, health=health, **facts
    )


ONE, TWO, THREE = record(0), record(1), record(2)


def slots(
    *records: AgentRecord,
    balance: Balance,
    calls: int = 1,
    busy: dict[int, int] | None = None,
    key: str = "",
    counts: bool = False,
) -> list[int]:
    """The slots that `calls` calls go to. `counts`: each call stays under way."""
    under_way = Counter(busy or {})
    draw = random.Random(5).random
    found = []
    for turn in range(calls):
        chosen = choose(
            candidates("A", records), balance, in_flight=lambda one: under_way[one.slot], turn=turn, draw=draw, key=key
        )
        found.append(chosen.id.slot)
        if counts:
            under_way[chosen.id.slot] += 1
    return found


def test_the_ways_to_balance_are_those_that_can_be_written() -> None:
    assert set(BALANCES) == set(get_args(Balance))


@pytest.mark.parametrize("balance", ["least_in_flight", "two_choices"])
def test_the_less_busy_of_two_is_chosen(balance: Balance) -> None:
    assert slots(ONE, TWO, balance=balance, busy={0: 2, 1: 1}) == [1]


def test_round_robin_takes_turns_however_busy_they_are() -> None:
    assert slots(ONE, TWO, THREE, balance="round_robin", calls=6, busy={1: 99}) == [0, 1, 2, 0, 1, 2]


def test_equals_take_turns() -> None:
    assert slots(ONE, TWO, balance="least_in_flight", calls=4) == [0, 1, 0, 1]


def test_two_choices_never_takes_the_busiest_and_looks_at_all() -> None:
    found = slots(ONE, TWO, THREE, balance="two_choices", calls=300, busy={0: 5, 1: 5, 2: 9})
    assert set(found) == {0, 1}
    spread = Counter(slots(ONE, TWO, THREE, balance="two_choices", calls=300, counts=True))
    assert max(spread.values()) - min(spread.values()) <= 10, spread


@pytest.mark.parametrize("balance", BALANCES)
def test_a_degraded_instance_gets_less_and_not_nothing(balance: Balance) -> None:
    weak = record(1, health="degraded")
    if balance == "hash":
        shares = Counter(slot for n in range(3000) for slot in slots(ONE, weak, balance=balance, key=f"user {n}"))
    else:
        shares = Counter(slots(ONE, weak, balance=balance, calls=3000, counts=True))
    assert DEGRADED_PARTS * 0.8 < shares[0] / shares[1] < DEGRADED_PARTS * 1.25, shares


@pytest.mark.parametrize("balance", BALANCES)
def test_a_failing_instance_gets_calls_only_where_there_is_nobody_else(balance: Balance) -> None:
    sick = record(0, health="failing")
    assert set(slots(sick, TWO, record(2, "starting"), balance=balance, calls=20, busy={1: 50})) == {1}
    assert slots(sick, record(2, "starting"), balance=balance) == [0]


@given(st.text(), st.permutations([ONE, TWO, THREE]))
def test_a_key_goes_to_one_instance_whatever_the_order(key: str, records: list[AgentRecord]) -> None:
    assert slots(*records, balance="hash", key=key) == slots(ONE, TWO, THREE, balance="hash", key=key)


def test_keys_spread_and_only_those_of_an_instance_that_goes_move() -> None:
    keys = [f"user {n}" for n in range(1000)]
    before = {key: slots(ONE, TWO, THREE, balance="hash", key=key)[0] for key in keys}
    assert min(Counter(before.values()).values()) > 250
    after = {key: slots(ONE, TWO, record(2, "stopped"), balance="hash", key=key)[0] for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != 2)
    assert {after[key] for key in keys if before[key] == 2} == {0, 1}


@pytest.mark.parametrize("phase", ["pending", "backoff", "starting", "draining", "forked", "stopping"])
def test_one_that_is_coming_up_is_chosen_only_where_none_is_ready(phase: str) -> None:
    coming = record(1, phase)
    assert slots(coming, ONE, balance="least_in_flight", busy={0: 50}) == [0]
    assert slots(coming, balance="least_in_flight") == [1]


def test_a_sleeper_is_woken_when_the_others_have_work_and_keeps_its_turns_and_keys() -> None:
    asleep = record(1, "hibernated")
    assert slots(asleep, ONE, balance="least_in_flight", busy={0: 2}) == [0]
    assert slots(asleep, ONE, balance="least_in_flight", busy={0: 4}) == [1]
    assert set(slots(asleep, ONE, balance="round_robin", calls=2)) == {0, 1}
    for key in map(str, range(50)):
        assert slots(record(0), asleep, balance="hash", key=key) == slots(record(0), record(1), balance="hash", key=key)


@pytest.mark.parametrize("phase", ["failed", "stopped", "skipped", "unreachable", "completed"])
def test_beyond_help_is_unreachable_and_says_why(phase: str) -> None:
    with pytest.raises(Unreachable, match=f"m/A is {phase}") as caught:
        candidates("A", (record(0, phase),))
    assert caught.value.details["phases"] == {"m/A": phase}


def test_one_without_an_endpoint_is_no_choice() -> None:
    with pytest.raises(Unreachable):
        candidates("A", (record(0, "starting", endpoints={}),))
