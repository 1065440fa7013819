"""Who is struck when: the same plan, seed and fleet give the same strikes."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from agentkit.names import AgentId
from startup.plan.chaos import strikes
from startup.spec.chaos import ChaosPlan, Expect, load
from startup.spec.problem import Problem
from startup.view.chaos import broken

IDS = [AgentId.parse(text) for text in ("a/One", "a/Two", "b/One", "b/Two#1")]
MACHINES = ["a", "b"]


def plan(**keys: object) -> ChaosPlan:
    return ChaosPlan.model_validate({"duration": "10s", **keys})


def test_the_same_seed_strikes_the_same_at_the_same_times_and_another_does_not() -> None:
    faults = [{"kill": {"agent": "*", "every": "500ms"}}, {"kill": {"node": "*", "every": "3s"}}]
    first, again, other = (strikes(plan(seed=seed, faults=faults), IDS, MACHINES) for seed in (1, 1, 2))
    assert first == again != other
    assert strikes(plan(seed=1, faults=faults), IDS[::-1], MACHINES[::-1]) == first
    assert [it.at_s for it in first] == sorted(it.at_s for it in first)
    assert (len(first), sum(it.kind == "node" for it in first)) == (23, 3)
    assert {it.target for it in first if it.kind == "agent"} == set(map(str, IDS))


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [("One", {"a/One", "b/One"}), ("b/*", {"b/One", "b/Two#1"}), ("Two#1", {"b/Two#1"}), ("T*", {"a/Two", "b/Two#1"})],
)
def test_agents_are_named_by_patterns_with_or_without_machine_and_slot(pattern: str, hit: set[str]) -> None:
    found = strikes(plan(faults=[{"kill": {"agent": pattern, "every": "100ms"}}]), IDS, MACHINES)
    assert {it.target for it in found} == hit
    assert all(it.machines == (it.target[0],) for it in found)


def test_what_lasts_says_how_long_and_a_cut_concerns_two_machines() -> None:
    faults = [
        {"stop": {"agent": "a/One", "at": "2s", "for": "3s"}},
        {"delay": {"between": ["b", "a"], "at": "1s", "for": "4s", "by": "200ms"}},
        {"partition": {"between": ["a", "b"], "at": "3s", "for": "5s"}},
    ]
    found = strikes(plan(faults=faults), IDS, MACHINES)
    assert [str(it) for it in found] == [
        "delay link b and a by 0.2 s for 4 s", "stop agent a/One for 3 s", "partition link a and b for 5 s",
    ]  # fmt: skip
    assert [it.machines for it in found] == [("b", "a"), ("a",), ("a", "b")]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"kill": {"agent": "Nobody", "at": "1s"}}, r"faults\.0\.kill\.agent: 'Nobody' matches none of a/One"),
        ({"kill": {"node": "c", "at": "1s"}}, "'c' matches none of a, b"),
        ({"partition": {"between": ["a", "c"], "at": "1s", "for": "1s"}}, "no machine 'c'; there are a, b"),
        ({"kill": {"agent": "*", "every": "1ms"}}, "none|10,000 strikes|at most"),
    ],
)
def test_what_matches_nothing_is_told(fault: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        strikes(plan(duration="60s", faults=[fault]), IDS, MACHINES)


def test_a_plan_is_checked_whole_like_a_fleet_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        dedent("""
        seed: 3
        durration: 10s
        faults:
          - kill: {agent: "*", evry: 2s}
          - stop: {agent: X, at: 1s}
          - kill: {agent: X, node: m, at: 1s}
        expect: {ready_within: 10}
        """)
    )
    problems: list[Problem] = []
    assert load(path, problems) is None
    told = "\n".join(map(str, problems))
    assert f"{path}:3: durration: unknown key `durration`; did you mean `duration`?" in told
    assert f"{path}:5: faults.0.kill.evry: unknown key `evry`; did you mean `every`?" in told
    assert "faults.1.stop.for" in told
    assert "one of `agent:`, `node:`, `zygote:`" in told
    assert "add the unit: 10s" in told


def test_what_is_broken_is_told_with_its_limit() -> None:
    well = {"fault": "kill agent a/One", "at_s": 1.0, "ready_s": 0.2, "missed": ""}
    found = {
        "faults": [well, {**well, "ready_s": 12.0}, {**well, "ready_s": None}],
        "probes": [{"ok": 9, "slow": 2, "failed": 1}],
        "orphans": {"a": [17]},
        "lost_ports": ["a/One"],
        "not_up": ["b/One"],
    }
    expect = Expect.model_validate({"failed_calls": 0, "slow_calls": 2, "ready_within": "10s"})
    assert broken(found, expect) == [
        "1 failed call; at most 0",
        "kill agent a/One at 1.0 s: well again after 12 s; within 10.0 s".replace("10.0 s", "10 s"),
        "kill agent a/One at 1.0 s: not well again in the end",
        "1 orphan: {'a': [17]}; at most 0",
        "lost ports: a/One; at most 0",
        "not up in the end: b/One",
    ]
    fine = {"faults": [well], "probes": [], "orphans": {}, "lost_ports": [], "not_up": []}
    assert broken(fine, expect) == []
