"""The last start, agent by agent: how long each waited, was forked, imported, initialised, and which chain made it that long.

Read off the rows' stamps. Stamps of different machines are compared as they are: a clock that is off by 20 ms shifts that
machine's bars by 20 ms. Pure: rows in, bars and text out; `svg.py` draws the same bars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentkit.names import AgentId
from startup.plan.row import AgentRow
from startup.view.words import columns, count, duration

#: What an agent does between two stamps, in order.
STEPS: Final = ("waiting", "fork", "import", "init")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One agent's start. Times are seconds since the first agent of this start was asked for."""

    id: AgentId
    group: str
    level: int  #: 0: waited for nobody
    spans: tuple[tuple[str, float, float], ...]  #: (a word of STEPS, from, to), without gaps
    ready_s: float
    after: AgentId | None  #: whose readiness unblocked it
    critical: bool = False

    @property
    def began_s(self) -> float:
        """When nothing held it back any more."""
        return next((start for step, start, _ in self.spans if step != "waiting"), self.ready_s)

    @property
    def took_s(self) -> float:
        return self.ready_s - self.began_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    bars: tuple[Bar, ...]  #: by level, then by the moment of readiness
    critical: tuple[Bar, ...]  #: the chain that made the start this long, first to last
    unfinished: tuple[AgentId, ...]  #: without a ready stamp

    @property
    def total_s(self) -> float:
        return max((bar.ready_s for bar in self.bars), default=0.0)


def timeline(rows: Iterable[AgentRow], *, since_s: float | None = None) -> Timeline:
    """The bars of the last start. `since_s`: leave out what was asked for earlier (seconds since the epoch)."""
    rows = [
        row for row in rows if row.stamps.wanted_s is not None and (since_s is None or row.stamps.wanted_s >= since_s)
    ]
    started = {row.id: row for row in rows if row.stamps.ready_s is not None}
    unfinished = tuple(sorted(row.id for row in rows if row.id not in started))
    zero_s = min((row.stamps.wanted_s for row in started.values() if row.stamps.wanted_s is not None), default=0.0)
    before = {id: _parent(row, started) for id, row in started.items()}
    last = max(started.values(), key=lambda row: (row.stamps.ready_s or 0.0, row.id), default=None)
    chain = _chain(last.id, before) if last is not None else []
    bars = {
        id: Bar(
            id=id,
            group=row.group,
            level=len(_chain(id, before)) - 1,
            spans=_spans(row, zero_s),
            ready_s=(row.stamps.ready_s or zero_s) - zero_s,
            after=before[id],
            critical=id in chain,
        )
        for id, row in started.items()
    }
    return Timeline(
        bars=tuple(sorted(bars.values(), key=lambda bar: (bar.level, bar.ready_s, bar.id))),
        critical=tuple(bars[id] for id in chain),
        unfinished=unfinished,
    )


def _parent(row: AgentRow, started: Mapping[AgentId, AgentRow]) -> AgentId | None:
    """The agent that unblocked it, when that one belongs to this start."""
    if not row.slowest_dependency:
        return None
    id = AgentId.parse(row.slowest_dependency)
    return id if id in started and id != row.id else None


def _chain(id: AgentId, before: Mapping[AgentId, AgentId | None]) -> list[AgentId]:
    """From the agent that waited for nobody down to `id`. A restart may have left a loop in the stamps: cut where it closes."""
    chain = [id]
    while (parent := before[chain[-1]]) is not None and parent not in chain:
        chain.append(parent)
    return chain[::-1]


def _spans(row: AgentRow, zero_s: float) -> tuple[tuple[str, float, float], ...]:
    """Consecutive spans; a stamp that is missing (programs have no import) hands its time to the step before."""
    stamps = row.stamps
    marks = [
        (step, stamp_s - zero_s)
        for step, stamp_s in zip(
            STEPS,
            (stamps.wanted_s, stamps.unblocked_s or stamps.forked_s, stamps.importing_s, stamps.starting_s),
            strict=True,
        )
        if stamp_s is not None
    ]
    end_s = (stamps.ready_s or zero_s) - zero_s
    ends = [*(start for _, start in marks[1:]), end_s]
    return tuple((step, start, max(start, end)) for (step, start), end in zip(marks, ends, strict=True))


def timeline_lines(line: Timeline, *, width: int) -> list[str]:
    """The Gantt chart in characters, the legend, and the critical path."""
    if not line.bars:
        return ["no agent has become ready yet"]
    label = min(28, max(len(bar.id.instance) for bar in line.bars) + 2)
    room = max(20, width - label - 10)
    scale = room / max(line.total_s, 1e-9)
    lines = [f"{count(len(line.bars), 'agent')} ready in {duration(line.total_s)}", ""]
    level = -1
    for bar in line.bars:
        if bar.level != level:
            level = bar.level
            lines.append(f"level {level}")
        name = ("* " if bar.critical else "  ") + bar.id.instance
        lines.append(f"{name[:label]:<{label}} {_strip(bar, scale, room)} {duration(bar.ready_s):>7}".rstrip())
    legend = "  ".join(f"{_MARKS[step]} {step}" for step in STEPS)
    lines += ["", f"{legend}  * on the slowest path", "", *path_lines(line, width=width)]
    if line.unfinished:
        lines += ["", "not ready: " + ", ".join(map(str, line.unfinished))]
    return lines


_MARKS: Final = {"waiting": "·", "fork": "-", "import": "=", "init": "#"}


def _strip(bar: Bar, scale: float, room: int) -> str:
    cells = [" "] * room
    for step, start, end in bar.spans:
        first = min(room - 1, max(0, int(start * scale)))
        for x in range(first, min(room, max(first + (step != "waiting"), round(end * scale)))):
            cells[x] = _MARKS[step]
    return "".join(cells)


def path_lines(line: Timeline, *, width: int) -> list[str]:
    """The slowest path, one agent per line with what it took; empty when nothing started."""
    if not line.critical:
        return []
    rows: list[Sequence[str]] = [("SLOWEST PATH", "FROM", "TOOK", "OF WHICH")]
    for bar in line.critical:
        spent: dict[str, Any] = {step: end - start for step, start, end in bar.spans if step != "waiting"}
        rows.append(
            (
                str(bar.id),
                duration(bar.began_s),
                duration(bar.took_s),
                ", ".join(f"{k} {duration(v)}" for k, v in spent.items()),
            )
        )
    return columns(rows, right={1, 2}, width=width)


def document(cluster: str, line: Timeline) -> dict[str, Any]:
    """What `timeline --json` prints."""
    return {
        "cluster": cluster,
        "total_s": round(line.total_s, 4),
        "critical_path": [str(bar.id) for bar in line.critical],
        "unfinished": [str(id) for id in line.unfinished],
        "agents": [
            {
                "id": str(bar.id),
                "group": bar.group,
                "level": bar.level,
                "after": str(bar.after) if bar.after else None,
                "critical": bar.critical,
                "ready_s": round(bar.ready_s, 4),
                "steps": {step: {"from_s": round(start, 4), "to_s": round(end, 4)} for step, start, end in bar.spans},
            }
            for bar in line.bars
        ],
    }
