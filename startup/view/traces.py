"""Traces as text: a line for each, or one as the tree of its calls. Pure: the spans that agents told in, lines out.

A span is a map as `agentkit.observe.trace.Span.to_wire` makes it, with the `agent` that keeps it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from startup.view.colour import BOLD, DIM, RED, paint
from startup.view.words import columns, count, duration

Span = Mapping[str, Any]

#: Columns of the picture of when each call ran; drawn from this width on.
BAR: Final = 40
BAR_FROM: Final = 120
#: Digits of an id that a list shows; commands take any beginning that means one trace only.
ID_DIGITS: Final = 12

_HEADING: Final = ("TRACE", "AGO", "TIME", "SPANS", "AGENTS", "END", "BEGINS WITH")


class Trace(NamedTuple):
    """What is known of one trace."""

    id: str
    start_s: float
    duration_s: float
    spans: tuple[Span, ...]

    @property
    def agents(self) -> list[str]:
        return sorted({span["agent"] for span in self.spans})

    @property
    def first(self) -> Span:
        return self.spans[0]


def traces(spans: Iterable[Span]) -> list[Trace]:
    """The latest first, the spans of each by their start."""
    by_id: dict[str, list[Span]] = {}
    for span in spans:
        by_id.setdefault(span["trace_id"], []).append(span)
    found = []
    for id, members in by_id.items():
        # of two that begin at the same microsecond the caller's comes first
        ordered = tuple(sorted(members, key=lambda span: (span["start_s"], span["kind"] != "client", span["span_id"])))
        start_s = ordered[0]["start_s"]
        end_s = max(span["start_s"] + span["duration_s"] for span in ordered)
        found.append(Trace(id, start_s, end_s - start_s, ordered))
    return sorted(found, key=lambda trace: (-trace.start_s, trace.id))


def table(found: Sequence[Trace], *, now_s: float, width: int, colour: bool = False) -> list[str]:
    """One line each, in the order given. `now_s`: seconds since the epoch."""

    def painted(y: int, x: int, cell: str) -> str:
        if y == 0:
            return paint(cell, BOLD, on=colour)
        return paint(cell, RED, on=colour and x == 5 and found[y - 1].first["code"] != "ok")

    rows = [_HEADING, *(_cells(trace, now_s) for trace in found)]
    return columns(rows, right={1, 2, 3, 4}, width=width, paint=painted)


def tree(trace: Trace, *, width: int, colour: bool = False) -> list[str]:
    """All of one trace: who called whom, after how long, for how long."""
    order = list(_by_descent(trace.spans))

    def painted(y: int, x: int, cell: str) -> str:
        if y == 0:
            return paint(cell, BOLD, on=colour)
        if cell.strip() and x == 2:
            return paint(cell, RED, on=colour and order[y - 1][0]["code"] != "ok")
        return paint(cell, DIM, on=colour and x == 4)

    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(trace.start_s))
    head = [paint(f"trace {trace.id}", BOLD, on=colour)]
    head.append(
        f"{clock}, {_time(trace.duration_s)}, {count(len(trace.spans), 'span')} of {count(len(trace.agents), 'agent')}"
    )
    bar = width >= BAR_FROM
    rows = [("AFTER", "TIME", "END", "AGENT", "KIND", *(["WHEN"] if bar else []), "CALL")]
    for span, lines in order:
        after_s = span["start_s"] - trace.start_s
        when = [_bar(after_s, span["duration_s"], trace.duration_s)] if bar else []
        rows.append(
            (
                _time(after_s),
                _time(span["duration_s"]),
                span["code"],
                span["agent"],
                span["kind"],
                *when,
                lines + _name(span),
            )
        )
    # `columns` makes one of several spaces, and these are drawn
    body = columns(
        [tuple(cell.replace(" ", "\u2800") if x == len(row) - 1 else cell for x, cell in enumerate(row)) for row in rows],
        right={0, 1}, width=width, paint=painted,
    )  # fmt: skip
    return [*head, "", *(line.replace("\u2800", " ") for line in body)]


def _by_descent(spans: Sequence[Span]) -> Iterator[tuple[Span, str]]:
    """Each span behind the one that it was called from, with the lines of the tree before its name. A span whose caller keeps
    none (a script, an agent that has forgotten) begins a tree of its own."""
    known = {span["span_id"] for span in spans}
    children: dict[str, list[Span]] = {}
    for span in spans:
        parent = span["parent_id"] if span["parent_id"] in known and span["parent_id"] != span["span_id"] else ""
        children.setdefault(parent, []).append(span)
    waiting = [(span, "", "") for span in reversed(children.get("", []))]
    seen: set[str] = set()
    while waiting:
        span, own, below = waiting.pop()
        seen.add(span["span_id"])
        yield span, own
        inner = children.get(span["span_id"], [])
        for place, child in enumerate(reversed(inner)):
            if child["span_id"] not in seen:
                last = place == 0
                waiting.append((child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))


def _name(span: Span) -> str:
    """`Agent.method`, from both sides."""
    if span["kind"] == "client":
        return str(span["name"])
    return f"{span['agent'].rpartition('/')[2].partition('#')[0]}.{span['name']}"


def _bar(after_s: float, duration_s: float, whole_s: float) -> str:
    if whole_s <= 0:
        return " " * BAR
    first = min(BAR - 1, max(0, int(after_s / whole_s * BAR)))
    length = max(1, round(duration_s / whole_s * BAR))
    return f"{' ' * first}{'━' * min(length, BAR - first)}".ljust(BAR)


def _cells(trace: Trace, now_s: float) -> tuple[str, ...]:
    first = trace.first
    return (
        trace.id[:ID_DIGITS],
        duration(now_s - trace.start_s),
        _time(trace.duration_s),
        str(len(trace.spans)),
        str(len(trace.agents)),
        str(first["code"]),
        f"{_name(first)} ({first['agent']})",
    )


def _time(seconds: float) -> str:
    """Calls take milliseconds: `0.3 ms`, `12.3 ms`, then as everywhere."""
    return f"{max(0.0, seconds) * 1000:.1f} ms" if seconds < 0.1 else duration(seconds)
