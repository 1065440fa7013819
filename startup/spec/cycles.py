"""Every cycle of a dependency graph, and the edge to cut. Pure, over names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: Cycles listed of one knot (strongly connected part); a knot of n agents may have exponentially many.
MAX_PER_KNOT: Final = 20
#: Steps of the search per knot, so that a dense knot of hundreds is answered in milliseconds too.
MAX_STEPS: Final = 20_000

Graph = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Cycle:
    """`path` names each member once: the first depends on the second, and so on, and the last on the first."""

    path: tuple[str, ...]
    cut: tuple[str, str]  #: (A, B): the edge A -> B lies on most of the knot's cycles
    more: bool = False  #: its knot has cycles that are not listed

    def __str__(self) -> str:
        return " -> ".join((*self.path, self.path[0]))


def cycles(graph: Graph) -> tuple[Cycle, ...]:
    """All elementary cycles, shortest first within a knot, at most MAX_PER_KNOT of each; every knot has at least one.

    Names that are no key of `graph` have no edges. The order is that of `graph`."""
    found: list[Cycle] = []
    for knot in _knots(graph):
        inside = frozenset(knot)
        edges = {name: [other for other in graph[name] if other in inside] for name in knot}
        paths, more = _paths(edges)
        on_most = Counter(edge for path in paths for edge in zip(path, (*path[1:], path[0]), strict=True))
        # the last edge found of those on most cycles: the one that closes them, usually the one added last
        best = max(on_most.values())
        cut = [edge for edge, count in on_most.items() if count == best][-1]
        found += [Cycle(path, cut, more) for path in paths]
    return tuple(found)


def _paths(edges: Graph) -> tuple[list[tuple[str, ...]], bool]:
    """Cycles by a search from each name over names that come later, shortest first; True: there may be more."""
    order = {name: number for number, name in enumerate(edges)}
    shortest = _shortest(edges)
    paths = [shortest]
    steps = 0
    for start in edges:
        stack = [(start, iter(edges[start]))]
        path = [start]
        while stack:
            _, rest = stack[-1]
            following = next(rest, None)
            steps += 1
            if steps > MAX_STEPS or len(paths) > MAX_PER_KNOT:
                return sorted(paths[:MAX_PER_KNOT], key=len), True
            if following is None:
                stack.pop()
                path.pop()
            elif following == start:
                if _rotated(path, order) != shortest:
                    paths.append(tuple(path))
            elif order[following] > order[start] and following not in path:
                path.append(following)
                stack.append((following, iter(edges[following])))
    return sorted(paths, key=len), False


def _rotated(path: Sequence[str], order: Mapping[str, int]) -> tuple[str, ...]:
    """The same cycle, starting with the name that comes first in the graph."""
    first = min(range(len(path)), key=lambda index: order[path[index]])
    return (*path[first:], *path[:first])


def _shortest(edges: Graph) -> tuple[str, ...]:
    """A shortest cycle through the knot's first name: there is one, and it is found without search for all."""
    start = next(iter(edges))
    before: dict[str, str] = {}
    queue = [start]
    for name in queue:
        for other in edges[name]:
            if other == start:
                path = [name]
                while path[-1] != start:
                    path.append(before[path[-1]])
                return tuple(reversed(path))
            if other not in before:
                before[other] = name
                queue.append(other)
    raise AssertionError("a knot holds a cycle through each of its names")


def _knots(graph: Graph) -> Iterator[list[str]]:
    """Strongly connected parts that hold a cycle (Tarjan, without recursion), each in the order of `graph`."""
    order = {name: number for number, name in enumerate(graph)}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: dict[str, None] = {}
    parts: list[list[str]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(graph[root]))]
        index[root] = low[root] = len(index)
        open_[root] = None
        while work:
            name, rest = work[-1]
            other = next(rest, None)
            if other is not None:
                if other in graph and other not in index:
                    index[other] = low[other] = len(index)
                    open_[other] = None
                    work.append((other, iter(graph[other])))
                elif other in open_:
                    low[name] = min(low[name], index[other])
                continue
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[name])
            if low[name] == index[name]:
                part: list[str] = []
                while not part or part[-1] != name:
                    last = next(reversed(open_))
                    del open_[last]
                    part.append(last)
                if len(part) > 1 or name in graph[name]:
                    parts.append(sorted(part, key=order.__getitem__))
    yield from sorted(parts, key=lambda part: order[part[0]])
