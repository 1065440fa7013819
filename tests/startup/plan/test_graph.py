from __future__ import annotations

from graphlib import CycleError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.names import AgentId, MachineName
from startup.plan.graph import Graph
from startup.spec.fleet import AgentSpec, AgentTarget, Dependency, Fleet, MachineSpec


def id_of(name: str) -> AgentId:
    return AgentId.parse(f"m/{name}")


def fleet_of(
    edges: dict[str, list[str]], *, optional: frozenset[str] = frozenset(), disabled: frozenset[str] = frozenset()
) -> Fleet:
    specs = tuple(
        AgentSpec(
            id=id_of(name),
            group="g",
            klass="standard",
            target=AgentTarget(module="m", cls="C"),
            port=1,
            enabled=name not in disabled,
            dependencies=tuple(
                Dependency(name=other, agents=(id_of(other),), required=other not in optional) for other in others
            ),
        )
        for name, others in edges.items()
    )
    return Fleet(cluster="c", project_root="/", file="/f", machines=(MachineSpec(name=MachineName("m")),), agents=specs)


def graph_of(edges: dict[str, list[str]]) -> Graph:
    return Graph.of(fleet_of(edges))


def names(ids: object) -> list[str]:
    return [str(id.name) for id in ids]  # type: ignore[attr-defined]


#: Edges to earlier names only: a graph without cycles, of up to 12 agents.
ACYCLIC = (
    st.integers(1, 12)
    .flatmap(
        lambda size: st.tuples(
            *(st.sets(st.integers(0, number - 1), max_size=4) if number else st.just(set()) for number in range(size))
        )
    )
    .map(lambda rows: {f"A{number}": [f"A{other}" for other in row] for number, row in enumerate(rows)})
)


@given(ACYCLIC)
def test_each_agent_is_one_level_above_the_highest_it_needs(edges: dict[str, list[str]]) -> None:
    level_of = {str(id.name): number for number, level in enumerate(graph_of(edges).levels()) for id in level}
    assert level_of == {
        name: 1 + max((level_of[other] for other in others), default=-1) for name, others in edges.items()
    }


@given(ACYCLIC)
def test_the_order_has_everybody_once_and_after_what_they_need(edges: dict[str, list[str]]) -> None:
    order = names(graph_of(edges).order())
    assert sorted(order) == sorted(edges)
    assert all(order.index(other) < order.index(name) for name, others in edges.items() for other in others)


@given(ACYCLIC)
def test_the_longest_path_has_as_many_agents_as_there_are_levels_and_follows_edges(edges: dict[str, list[str]]) -> None:
    graph = graph_of(edges)
    path = names(graph.longest_path())
    assert len(path) == len(graph.levels())
    assert all(first in edges[second] for first, second in pairwise(path))


@given(ACYCLIC, st.data())
def test_a_closure_is_closed_and_both_directions_agree(edges: dict[str, list[str]], data: st.DataObject) -> None:
    graph = graph_of(edges)
    start = id_of(data.draw(st.sampled_from(sorted(edges))))
    needed = graph.with_needs([start])
    assert all(other in needed for id in needed for other in graph.needs[id])
    assert all(start in graph.with_dependants([id]) for id in needed)


def test_measured_times_decide_the_longest_path() -> None:
    graph = graph_of({"A": [], "B": [], "C": ["A", "B"]})
    assert names(graph.longest_path({id_of("A"): 1.0, id_of("B"): 5.0, id_of("C"): 1.0}.__getitem__)) == ["B", "C"]


def test_cycles_are_listed_and_have_no_levels() -> None:
    graph = graph_of({"A": ["B"], "B": ["A"], "C": ["A"]})
    assert [str(cycle) for cycle in graph.cycles()] == ["m/A -> m/B -> m/A"]
    with pytest.raises(CycleError):
        graph.levels()


def test_disabled_agents_are_no_part_of_it_and_lead_nowhere() -> None:
    graph = Graph.of(fleet_of({"A": [], "B": ["A"], "C": ["B"]}, disabled=frozenset("B")))
    assert names(graph.order()) == ["A", "C"]
    assert names(sorted(graph.with_needs([id_of("B")]))) == ["B"]


def test_optional_edges_may_be_left_out() -> None:
    fleet = fleet_of({"A": [], "B": ["A"]}, optional=frozenset("A"))
    assert names(sorted(Graph.of(fleet).with_needs([id_of("B")]))) == ["A", "B"]
    assert names(sorted(Graph.of(fleet, only_required=True).with_needs([id_of("B")]))) == ["B"]


def test_an_empty_fleet_has_no_levels_and_no_path() -> None:
    graph = graph_of({})
    assert graph.levels() == graph.longest_path() == graph.order() == ()
