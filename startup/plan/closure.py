"""All that something leads to: dependencies of dependencies, children of children."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Node = TypeVar("Node")


def closure(edges: Mapping[Node, Iterable[Node]], ids: Iterable[Node]) -> frozenset[Node]:
    """`ids` and all that they lead to. Those that are not in the graph (disabled ones) stay in the answer and lead nowhere."""
    found: set[Node] = set()
    todo = list(ids)
    while todo:
        id = todo.pop()
        if id not in found:
            found.add(id)
            todo += edges.get(id, ())
    return frozenset(found)
