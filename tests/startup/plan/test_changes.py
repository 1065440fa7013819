"""What one revision changes of another: everything that differs is told once, and nothing that is secret at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.names import AgentId
from startup.plan.changes import Changes, changes
from startup.plan.keys import agent_keys
from startup.spec.fleet import (
    AgentSpec,
    Dependency,
    ErrorRule,
    External,
    MachineSpec,
    MeshSpec,
    ProgramTarget,
    Resources,
    RestartPolicy,
    SecretRef,
)
from startup.view.changes import change_lines
from tests.startup.plan.builders import agent, aid, revision


def pairs(old: AgentSpec, new: AgentSpec) -> dict[str, tuple[str, str]]:
    return {it.key: (it.old, it.new) for it in agent_keys(old, new)}


@pytest.mark.parametrize(
    ("old", "new", "key", "texts"),
    [
        ({"port": 7000}, {"port": 7001}, "port", ("7000", "7001")),
        ({"klass": "core"}, {"klass": "debug"}, "class", ("core", "debug")),
        ({"watchdog_s": 30.0}, {"watchdog_s": 0.0}, "watchdog", ("30s", "0s")),
        ({"start_timeout_s": 60.0}, {"start_timeout_s": 0.3}, "start.timeout", ("1m", "300ms")),
        ({"restart": RestartPolicy()}, {"restart": RestartPolicy(max_delay_s=90.0)}, "restart.max_delay", ("30s", "90s")),
        ({}, {"resources": Resources(memory_limit_bytes=2**28)}, "resources.limits.memory", ("-", "256Mi")),
        ({}, {"config": {"db": {"path": "a b"}}}, "config.db.path", ("-", "a b")),
        ({"config": {"timeout_s": 5}}, {"config": {"timeout_s": 6}}, "config.timeout_s", ("5", "6")),
        ({"config": {"on": True}}, {"config": {"on": 1}}, "config.on", ("true", "1")),
        ({"config": {"words": ["a"]}}, {"config": {"words": ["a", "b"]}}, "config.words", ("[a]", "[a, b]")),
        ({"config": {"l": [{"x": 1}]}}, {"config": {"l": [{"x": 2}]}}, "config.l.0.x", ("1", "2")),
        ({"policy": {"calls": {"timeout_s": 5.0}}}, {"policy": {}}, "calls.timeout", ("5s", "-")),
        ({}, {"roll": "handover"}, "roll", ("-", "handover")),
        ({}, {"target": ProgramTarget(argv=("java", "-jar", "x.jar"))}, "target", ("m:C", "[java, -jar, x.jar]")),
    ],
)  # fmt: skip
def test_a_changed_key_is_told_in_the_words_of_the_file(
    old: dict[str, Any], new: dict[str, Any], key: str, texts: tuple[str, str]
) -> None:
    assert pairs(agent("A", **old), agent("A", **new)) == {key: texts}


def test_whom_a_dependency_means_is_no_change_of_the_agent() -> None:
    one = Dependency(name="B", agents=(aid("B"),))
    two = replace(one, agents=(aid("B"), AgentId(aid("B").machine, aid("B").name, 1)))
    before, after = (replace(agent("A"), dependencies=(it,)) for it in (one, two))
    assert pairs(before, after) == {}
    assert not changes(revision(before), revision(after)).changed
    assert pairs(agent("A"), before) == {"dependencies": ("-", "[B]")}
    optional = replace(before, dependencies=(replace(one, required=False, condition="started"),))
    assert pairs(before, optional) == {"dependencies": ("[B]", "[B (started, optional)]")}


SECRET = "tr0ub4dor"


@pytest.mark.parametrize(
    "keys",
    [
        {"config": {"db_password": SECRET}},
        {"config": {"credentials": {"user": "u", "value": SECRET}}},
        {"config": {"url": f"https://u:{SECRET}@host/x"}},
        {"config": {"url": f"https://host/x?a=1&token={SECRET}"}},
        {"env": {"API_TOKEN": SECRET}},
        {"secrets": {"K": SecretRef(file=f"/run/{SECRET}")}},
        {"on_error": (ErrorRule(do="webhook", url=f"https://host/{SECRET}"),)},
        {"target": ProgramTarget(argv=("x", f"--password={SECRET}"))},
        {"target": ProgramTarget(argv=("x", "--api-key", SECRET))},
    ],
)
def test_a_secret_is_never_shown_only_that_it_changes(keys: dict[str, Any]) -> None:
    for old, new in ((agent("A"), agent("A", **keys)), (agent("A", **keys), agent("A"))):
        found = changes(revision(old), revision(new))
        assert found.changed
        shown = json.dumps(found.to_wire()) + "\n".join(change_lines(found, width=200))
        assert SECRET not in shown


def test_what_a_process_does_not_know_of_replaces_nothing() -> None:
    found = changes(revision(agent("A")), revision(agent("A", restart=RestartPolicy(max_attempts=9))))
    assert found.replaced == ()
    assert [it.id for it in found.changed] == [aid("A")]
    assert changes(revision(agent("A")), revision(agent("A", config={"x": 1}))).replaced == (aid("A"),)


def test_a_config_is_taken_in_place_by_who_can_and_when_nothing_else_changed() -> None:
    old, new = (
        revision(agent("A"), agent("B")),
        revision(agent("A", config={"x": 1}), agent("B", config={"x": 1}, port=1)),
    )
    assert [it.in_place for it in changes(old, new, {aid("A"), aid("B")}).changed] == [True, False]
    assert [it.in_place for it in changes(old, new).changed] == [False, False]
    assert "  ~ m/A  config (in place)" in list(change_lines(changes(old, new, {aid("A")}), width=80))


def test_an_agent_on_another_machine_has_moved() -> None:
    found = changes(revision(agent("m/A"), agent("n/B")), revision(agent("n/A", port=1), agent("n/B")))
    assert (found.added, found.removed) == ((), ())
    (move,) = found.moved
    assert (move.old, move.new, [it.key for it in move.keys]) == (aid("m/A"), aid("n/A"), ["port"])


def test_slots_are_told_as_a_number_and_whether_an_operator_said_it() -> None:
    slots = [replace(agent("A"), id=AgentId(aid("A").machine, aid("A").name, slot)) for slot in range(4)]
    found = changes(replace(revision(*slots), scaled={"m/A": 4}), revision(*slots[:2]))
    (it,) = found.rescaled
    assert (it.agent, it.old, it.new, it.was_scaled, it.is_scaled) == ("m/A", 4, 2, True, False)
    assert [str(id) for id in found.removed] == ["m/A#2", "m/A#3"]
    assert "  ~ m/A  replicas 4 (scaled) → 2" in list(change_lines(found, width=80))


def test_what_operators_stopped_and_the_fleet_itself_are_told() -> None:
    old = revision(agent("A"), agent("B"), stopped=("A",), mesh=MeshSpec(), externals=(External(name="R", tcp="h:1"),))
    new = revision(agent("A"), agent("B"), stopped=("B",), mesh=MeshSpec(suspect_s=5.0))
    new = replace(new, fleet=replace(new.fleet, machines=(MachineSpec(name=aid("A").machine, host="10.0.0.1"),)))
    found = changes(old, new)
    assert (found.started, found.stopped) == ((aid("A"),), (aid("B"),))
    told = {it.key: (it.old, it.new) for it in found.fleet}
    assert told["mesh.suspect"] == ("3s", "5s")
    assert told["external.R.tcp"] == ("h:1", "-")
    assert told["machines.m.host"] == ("127.0.0.1", "10.0.0.1")


texts = st.sampled_from(["", " ", "a", "a.b", "\x1b[31m", "line\nbreak", "x" * 300, "\u202e", "→"])
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts, st.lists(texts, max_size=3)
)


@st.composite
def specs(draw: st.DrawFn) -> AgentSpec:
    name = f"{draw(st.sampled_from('mno'))}/{draw(st.sampled_from('ABCDEF'))}"
    spec = agent(
        name, config=draw(st.dictionaries(texts, values, max_size=3)), port=draw(st.integers(1, 3)), required=draw(st.booleans())
    )  # fmt: skip
    return replace(spec, id=AgentId(spec.machine, spec.name, draw(st.integers(0, 2))))


fleets = st.lists(specs(), max_size=12, unique_by=lambda spec: spec.id)


@given(fleets, fleets, st.integers(40, 220))
def test_every_agent_of_both_is_in_exactly_one_place(old: list[AgentSpec], new: list[AgentSpec], width: int) -> None:
    found = changes(revision(*old), revision(*new))
    before, after = {spec.id for spec in old}, {spec.id for spec in new}
    came = [*found.added, *(it.new for it in found.moved)]
    went = [*found.removed, *(it.old for it in found.moved)]
    assert set(came) == after - before
    assert set(went) == before - after
    assert len(came) == len(set(came))
    changed = {it.id for it in found.changed}
    assert {spec.id for spec in new if spec not in old} - set(came) >= changed
    assert {spec.id for spec in new if spec.id in before and spec.digest() not in [o.digest() for o in old]} <= changed
    assert found.unchanged == len(before & after) - len(changed)
    lines = list(change_lines(found, width=width))
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    json.dumps(found.to_wire())


@given(fleets)
def test_nothing_changes_from_a_fleet_to_itself(specs: list[AgentSpec]) -> None:
    found = changes(revision(*specs), revision(*specs, number=9))
    assert found == Changes(unchanged=len(specs))
    assert not found
