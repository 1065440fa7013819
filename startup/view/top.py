"""`top` as values and text: two samples in, shares and rates out; those in, lines out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agentkit.names import AgentId
from startup.plan.row import AgentRow
from startup.view.colour import BOLD, CYAN, DIM, RED, of_row, paint, state_of
from startup.view.document import uptime_s, why
from startup.view.words import columns, count, duration, fit, number

#: Column by which lines are sorted -> the key that chooses it.
SORTS: Final = {"cpu": "c", "memory": "m", "requests": "r", "errors": "e", "name": "n"}
#: Agents tell their counts with the watchdog, every 10 s: one that has told nothing new for so long serves nothing, in seconds.
QUIET_AFTER_S: Final = 12.0
#: From this width on there is room for errors, restarts and pid.
_WIDE: Final = 120


@dataclass(frozen=True, slots=True)
class Counted:
    """An agent's counts, when they last changed, and how fast they grew until then."""

    requests: int
    errors: int
    changed_s: float
    requests_per_s: float = 0.0
    errors_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One agent. `cpu`: percent of one core; None: not known (yet)."""

    row: AgentRow
    cpu: float | None
    memory_mb: float | None
    requests_per_s: float
    errors_per_s: float


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known after a sample; the next one is compared with it."""

    at_s: float
    machines: Mapping[str, Mapping[str, Any] | None] = field(
        default_factory=dict
    )  #: as nodes told, with `cpu` of each process
    lines: tuple[Line, ...] = ()
    memory_mb: Mapping[str, float] = field(default_factory=dict)  #: by id, as last measured
    counted: Mapping[AgentId, Counted] = field(default_factory=dict)


def next_picture(
    before: Picture | None, machines: Mapping[str, Mapping[str, Any] | None], rows: Sequence[AgentRow], at_s: float
) -> Picture:
    """`machines`: what the `usage` operation told; `at_s`: seconds on any one clock."""
    known = before or Picture(at_s=at_s)
    shared = {
        machine: None if told is None else _with_shares(told, known.machines.get(machine))
        for machine, told in machines.items()
    }
    using: dict[str, Mapping[str, Any]] = {}
    for told in shared.values():
        using |= told["agents"] if told else {}
    fresh = {id: found["memory_mb"] for id, found in using.items() if found.get("memory_mb") is not None}
    memory_mb = {id: size for id, size in {**known.memory_mb, **fresh}.items() if id in using}
    counted = {row.id: _counted(known.counted.get(row.id), row, at_s) for row in rows}
    lines = tuple(
        Line(
            row=row,
            cpu=using.get(str(row.id), {}).get("cpu"),
            memory_mb=memory_mb.get(str(row.id)),
            requests_per_s=counted[row.id].requests_per_s,
            errors_per_s=counted[row.id].errors_per_s,
        )
        for row in rows
    )
    return Picture(at_s=at_s, machines=shared, lines=lines, memory_mb=memory_mb, counted=counted)


def _with_shares(told: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same with `cpu` beside each `cpu_s`: percent of one core since `before`."""
    passed_s = told["at_s"] - before["at_s"] if before else 0.0

    def shared(now: Mapping[str, Any] | None, then: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if now is None:
            return None
        same = then is not None and then["pid"] == now["pid"] and passed_s > 0
        cpu = round(100 * max(0.0, now["cpu_s"] - then["cpu_s"]) / passed_s, 1) if same and then else None
        kept = then.get("memory_mb") if then else None
        return {"memory_mb": kept, **now, "cpu": cpu}

    earlier: Mapping[str, Any] = before["agents"] if before else {}
    return {
        **told,
        "node": shared(told["node"], before["node"] if before else None),
        "zygote": shared(told["zygote"], before["zygote"] if before else None),
        "agents": {id: shared(found, earlier.get(id)) for id, found in told["agents"].items()},
    }


def _counted(before: Counted | None, row: AgentRow, at_s: float) -> Counted:
    if before is None or row.requests < before.requests or row.errors < before.errors:  # new, or another process
        return Counted(row.requests, row.errors, at_s)
    if (row.requests, row.errors) == (before.requests, before.errors):
        if at_s - before.changed_s <= QUIET_AFTER_S:
            return before
        return replace(before, requests_per_s=0.0, errors_per_s=0.0)
    passed_s = max(at_s - before.changed_s, 1e-3)
    return Counted(
        row.requests,
        row.errors,
        at_s,
        round((row.requests - before.requests) / passed_s, 1),
        round((row.errors - before.errors) / passed_s, 1),
    )


def ordered(lines: Sequence[Line], by: str) -> list[Line]:
    """The greatest first; names from A."""
    keys: dict[str, Callable[[Line], Any]] = {
        "cpu": lambda line: -(line.cpu or 0.0),
        "memory": lambda line: -(line.memory_mb or 0.0),
        "requests": lambda line: (-line.requests_per_s, -line.row.requests),
        "errors": lambda line: (-line.errors_per_s, -line.row.errors),
        "name": lambda _: 0,
    }
    key = keys[by]
    return sorted(lines, key=lambda line: (key(line), line.row.id))


def top_lines(
    cluster: str,
    picture: Picture,
    *,
    by: str,
    now_s: float,
    width: int,
    height: int | None = None,
    skipped: int = 0,
    colour: bool = False,
    keys: bool = False,
) -> list[str]:
    """`now_s`: seconds since the epoch; `height`: lines that fit (None: all); `skipped`: agents scrolled away; `keys`: tell them."""
    total = [line.cpu for line in picture.lines if line.cpu is not None]
    served = sum(line.requests_per_s for line in picture.lines)
    head = f"cluster {cluster}: {count(len(picture.lines), 'agent')}, {sum(total):.0f}% of a core, {_rate(served)} requests/s; by {by}"
    lines = [paint(fit(head, width), BOLD, on=colour)]
    lines += [
        paint(fit(_machine(name, told), width), RED if told is None else CYAN, on=colour)
        for name, told in sorted(picture.machines.items())
    ]
    if keys:
        lines.append(paint(fit(_KEYS, width), DIM, on=colour))
    wide = width >= _WIDE
    shown = ordered(picture.lines, by)[skipped:]
    room = None if height is None else max(0, height - len(lines) - 1)
    hidden = 0 if room is None else max(0, len(shown) - room)
    if hidden and room is not None:
        hidden += 1  # the line that says so
        shown = shown[: max(0, room - 1)]
    table = [_HEADING_WIDE if wide else _HEADING, *(_cells(line, now_s, wide=wide) for line in shown)]

    def painted(y: int, x: int, cell: str) -> str:
        if y == 0:
            return paint(cell, BOLD, on=colour)
        return paint(cell, of_row(shown[y - 1].row), on=colour) if x == 1 else cell

    lines += columns(table, right=_RIGHT_WIDE if wide else _RIGHT, width=width, paint=painted)
    if hidden:
        lines.append(paint(fit(f"and {count(hidden, 'agent')} more", width), DIM, on=colour))
    return lines if height is None else lines[:height]


def document(cluster: str, picture: Picture, by: str) -> dict[str, Any]:
    """What `top --json` prints."""
    return {
        "cluster": cluster,
        "machines": [
            {"machine": machine, "unreachable": told is None}
            | ({key: value for key, value in told.items() if key not in ("agents", "at_s")} if told else {})
            for machine, told in sorted(picture.machines.items())
        ],
        "agents": [
            {
                "name": str(line.row.id.name),
                "instance": line.row.id.instance,
                "machine": str(line.row.id.machine),
                "phase": line.row.phase.value,
                "health": line.row.health.value,
                "pid": line.row.pid,
                "cpu_percent": line.cpu,
                "memory_mb": line.memory_mb,
                "requests_per_s": line.requests_per_s,
                "errors_per_s": line.errors_per_s,
                "requests": line.row.requests,
                "errors": line.row.errors,
                "restarts": line.row.restarts,
            }
            for line in ordered(picture.lines, by)
        ],
    }


_KEYS: Final = "q quits; by c cpu, m memory, r requests, e errors, n name; up, down, page up, page down scroll"
_HEADING: Final = ("AGENT", "STATE", "CPU%", "MB", "REQ/S", "ERR/S", "NOTE")
_HEADING_WIDE: Final = (
    "AGENT", "STATE", "CPU%", "MB", "REQ/S", "ERR/S", "CALLS", "ERRORS", "PID", "UP", "RESTARTS", "GROUP", "NOTE",
)  # fmt: skip
_RIGHT: Final = frozenset({2, 3, 4, 5})
_RIGHT_WIDE: Final = frozenset({2, 3, 4, 5, 6, 7, 8, 9, 10})


def _cells(line: Line, now_s: float, *, wide: bool) -> tuple[str, ...]:
    row = line.row
    first = (
        fit(row.id.instance, 40 if wide else 24),
        state_of(row),
        "-" if line.cpu is None else f"{line.cpu:.1f}",
        "-" if line.memory_mb is None else f"{line.memory_mb:.1f}",
        _rate(line.requests_per_s),
        _rate(line.errors_per_s),
    )
    note = why(row) or row.status_text
    if not wide:
        return (*first, note)
    up_s = uptime_s(row, now_s)
    up = "-" if up_s is None else duration(up_s)
    counts = (number(row.requests), number(row.errors), str(row.pid or "-"), up, str(row.restarts))
    return (*first, *counts, row.group, note)


def _rate(per_s: float) -> str:
    return "-" if per_s == 0 else f"{per_s:.1f}" if per_s < 100 else number(round(per_s))


def _machine(name: str, told: Mapping[str, Any] | None) -> str:
    if told is None:
        return f"{name}: does not answer"
    used_mb = told["memory_mb"] - told["memory_free_mb"]
    load = " ".join(f"{value:.2f}" for value in told["load"])
    parts = [
        f"load {load} on {count(told['cores'], 'core')}",
        f"memory {used_mb / 1024:.1f} of {told['memory_mb'] / 1024:.1f} GB",
        *(f"{what} {_cost(told[what])}" for what in ("node", "zygote") if told[what]),
    ]
    return f"{name}: " + ", ".join(parts)


def _cost(found: Mapping[str, Any]) -> str:
    cpu = "-" if found["cpu"] is None else f"{found['cpu']:.1f}%"
    return cpu if found.get("memory_mb") is None else f"{cpu} {found['memory_mb']:.0f} MB"
