from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

from hypothesis import given
from hypothesis import strategies as st

from startup.spec.cycles import MAX_PER_KNOT, cycles

NAMES = st.sampled_from("ABCDEFG")
GRAPHS = st.dictionaries(NAMES, st.lists(NAMES, unique=True, max_size=4), max_size=7)


def paths(graph: dict[str, list[str]]) -> list[str]:
    return [str(cycle) for cycle in cycles(graph)]


def test_a_tree_has_none() -> None:
    assert not cycles({"A": ["B", "C"], "B": ["C"], "C": []})


def test_an_agent_that_needs_itself_is_a_cycle() -> None:
    assert paths({"A": ["A"]}) == ["A -> A"]


def test_every_cycle_is_found_in_one_run() -> None:
    graph = {"A": ["B"], "B": ["C", "A"], "C": ["A"], "X": ["Y"], "Y": ["X"]}
    assert sorted(paths(graph)) == ["A -> B -> A", "A -> B -> C -> A", "X -> Y -> X"]


def test_the_edge_to_cut_lies_on_all_cycles_of_its_knot_where_there_is_one() -> None:
    found = cycles({"A": ["B"], "B": ["C", "A"], "C": ["A"]})
    assert {cycle.cut for cycle in found} == {("A", "B")}


def test_a_knot_with_countless_cycles_is_answered_and_says_so() -> None:
    names = [f"N{number}" for number in range(60)]
    found = cycles(dict.fromkeys(names, names))
    assert 0 < len(found) <= MAX_PER_KNOT
    assert all(cycle.more for cycle in found)


def test_a_chain_of_a_thousand_and_its_cycle_need_no_recursion() -> None:
    names = [f"N{number}" for number in range(3000)]
    graph = {name: [names[(number + 1) % len(names)]] for number, name in enumerate(names)}
    assert len(cycles(graph)[0].path) == 3000


@given(GRAPHS)
def test_cycles_are_found_exactly_when_there_is_no_order(graph: dict[str, list[str]]) -> None:
    known = {name: [other for other in others if other in graph] for name, others in graph.items()}
    try:
        list(TopologicalSorter(known).static_order())
    except CycleError:
        assert cycles(known)
    else:
        assert not cycles(known)


@given(GRAPHS)
def test_each_cycle_follows_edges_names_nobody_twice_and_stands_once(graph: dict[str, list[str]]) -> None:
    found = cycles(graph)
    for cycle in found:
        assert len(set(cycle.path)) == len(cycle.path)
        for origin, target in zip(cycle.path, (*cycle.path[1:], cycle.path[0]), strict=True):
            assert target in graph[origin]
        assert cycle.cut[1] in graph[cycle.cut[0]]
    rotations = [frozenset(zip(c.path, (*c.path[1:], c.path[0]), strict=True)) for c in found]
    assert len(set(rotations)) == len(rotations)
