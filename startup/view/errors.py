"""Error groups as text: one line each, or everything about one. Pure: what nodes tell and a time in, lines out."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from startup.view.colour import BOLD, DIM, GREEN, RED, YELLOW, paint
from startup.view.words import columns, count, cut, duration, number

#: Digits of an id that people are shown; commands take any beginning of four or more that means one error only.
ID_DIGITS: Final = 8
_COLOURS: Final = {"critical": RED, "error": RED, "warning": YELLOW}
_HEADING: Final = ("ID", "SEVERITY", "COUNT", "LAST", "AGENT", "WHAT")


def table(groups: Sequence[Mapping[str, Any]], *, now_s: float, width: int, colour: bool = False) -> list[str]:
    """One line each, in the order given. `now_s`: seconds since the epoch."""

    def painted(y: int, x: int, cell: str) -> str:
        if y == 0:
            return paint(cell, BOLD, on=colour)
        return paint(cell, _colour(groups[y - 1]), on=colour) if x == 1 else cell

    rows = [_HEADING, *(_cells(group, now_s) for group in groups)]
    return columns(rows, right={2, 3}, width=width, paint=painted)


def line(group: Mapping[str, Any], *, width: int, colour: bool = False) -> str:
    """For a list that goes on: what just happened, with the time of its last occurrence."""
    clock = time.strftime("%H:%M:%S", time.localtime(group["last_s"]))
    times = f"x{number(group['count'])}" if group["count"] > 1 else ""
    head = f"{clock} {group['id'][:ID_DIGITS]} "
    severity = paint(f"{_state(group):<8}", _colour(group), on=colour)
    rest = f"{group['agent']} {times:<5} {what(group)}"
    return f"{head}{severity} {cut(rest, max(20, width - len(head) - 9))}"


def details(group: Mapping[str, Any], *, now_s: float, width: int, colour: bool = False) -> list[str]:
    """Everything that is known of one."""
    first = duration(now_s - group["first_s"])
    resolved = group["resolved_s"]
    state = f"resolved by {group['resolved_by']} {duration(now_s - resolved)} ago" if resolved else "open"
    if group["reopened"]:
        state += f", reopened {count(group['reopened'], 'time')}"
    facts = [
        ("agent", group["agent"]),
        ("severity", paint(group["severity"], _colour(group), on=colour)),
        ("state", state),
        ("count", f"{group['count']:,}"),
        ("first", f"{_moment(group['first_s'])}, {first} ago"),
        ("last", f"{_moment(group['last_s'])}, {duration(now_s - group['last_s'])} ago"),
        ("kind", group["kind"]),
        ("place", group["place"]),
        ("message", group["message"].replace("\n", "\n" + " " * 12)),
    ]
    lines = [paint(group["id"], BOLD, on=colour), *(f"  {label:<10}{value}" for label, value in facts)]
    if group.get("context"):
        lines += ["", *(f"  {key:<10}{_shown(value)}" for key, value in group["context"].items())]
    if group.get("trace"):
        lines += ["", *(f"  | {cut(text, width - 4)}" for text in group["trace"].rstrip().splitlines())]
    return lines


def what(group: Mapping[str, Any]) -> str:
    """Message and place, without saying anything twice."""
    message = " ".join(str(group["message"]).split())
    if group["kind"] in ("report", "process"):
        return message
    return f"{message} ({group['place']})" if group["place"] not in message else message


def _cells(group: Mapping[str, Any], now_s: float) -> tuple[str, ...]:
    agent = str(group["agent"])
    return (
        group["id"][:ID_DIGITS],
        _state(group),
        number(group["count"]),
        duration(now_s - group["last_s"]),
        agent,
        what(group),
    )


def _state(group: Mapping[str, Any]) -> str:
    return "resolved" if group["resolved_s"] else str(group["severity"])


def _colour(group: Mapping[str, Any]) -> str:
    return GREEN if group["resolved_s"] else _COLOURS.get(group["severity"], DIM)


def _moment(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
