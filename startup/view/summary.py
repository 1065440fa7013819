"""What `up` says when it is decided: how many, how long, the slowest path, how to go on, what failed and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from agentkit.names import AgentId
from startup.plan.phase import UP, Phase
from startup.plan.row import AgentRow
from startup.view.colour import BOLD, GREEN, RED, YELLOW, paint
from startup.view.document import why
from startup.view.timeline import timeline
from startup.view.verdict import Verdict, failed_rows, is_degraded, skipped_rows
from startup.view.words import count, cut, duration, fit, listing

#: More failures than this are counted, not shown with their logs.
_SHOWN: Final = 8


def summary_lines(
    rows: Mapping[AgentId, AgentRow],
    wanted: Sequence[AgentId],
    verdict: Verdict,
    *,
    elapsed_s: float,
    began_s: float,
    log_tails: Mapping[AgentId, Sequence[str]],
    width: int,
    colour: bool = False,
    program: str = "agentkit",
) -> list[str]:
    """`began_s`: when the command began, in seconds since the epoch: agents started earlier are not part of its path.
    `program`: how the reader would type the command."""
    good = verdict.state == "ready"
    machines = {id.machine for id in wanted}
    where = f" on {count(len(machines), 'machine')}" if len(machines) > 1 else ""
    shade = GREEN if good else RED
    of = "" if len(verdict.up) == len(wanted) else f" of {len(wanted)}"
    head = f"{len(verdict.up)}{of} {'agent' if len(wanted) == 1 else 'agents'} ready in {duration(elapsed_s)}{where}"
    lines = [paint(head, shade, on=colour)]
    if path := _path(rows, wanted, began_s):
        lines.append(fit(f"slowest path: {path}", width))
    if verdict.up:
        one = _example(rows, verdict.up)
        lines.append(f"call one: {program} describe {one}; {program} call {one} METHOD key=value")
    lines += _failures(rows, wanted, log_tails, width, colour=colour)
    causes: dict[str, list[str]] = defaultdict(list)
    for row in skipped_rows(rows, wanted):
        causes[row.because or row.reason].append(row.id.instance)
    for cause, names in causes.items():
        lines.append(paint(f"skipped because of {cause}: ", YELLOW, on=colour) + listing(names, 12))
    for row in [rows[id] for id in verdict.up if is_degraded(rows[id])]:
        lines.append(paint(f"{row.health.value} ", YELLOW, on=colour) + fit(f"{row.id}: {row.reason}", width - 10))
    coming = [id.instance for id in verdict.coming if id in rows and rows[id].phase in _ON_THE_WAY]
    if coming:
        lines.append(f"still on their way: {listing(coming, 12)}")
    return lines


def _path(rows: Mapping[AgentId, AgentRow], wanted: Sequence[AgentId], began_s: float) -> str:
    """`A 120 ms > B 80 ms`: the chain that made it last that long, of agents that this command started."""
    # a second of tolerance: stamps may be another machine's
    fresh = [
        rows[id]
        for id in wanted
        if id in rows and rows[id].phase in UP and (rows[id].stamps.forked_s or 0.0) >= began_s - 1.0
    ]
    return " > ".join(f"{bar.id.instance} {duration(bar.took_s)}" for bar in timeline(fresh).critical)


def _example(rows: Mapping[AgentId, AgentRow], up: Sequence[AgentId]) -> str:
    """An agent worth calling: one with an inbox, the last in file order, as leaves answer the interesting questions."""
    callable_ = [id for id in up if rows[id].endpoints]
    id = (callable_ or list(up))[-1]
    others = sum(other.name == id.name and other.machine != id.machine for other in up)
    return f"{id.machine}/{id.name}" if others else str(id.name)


def _failures(
    rows: Mapping[AgentId, AgentRow],
    wanted: Sequence[AgentId],
    log_tails: Mapping[AgentId, Sequence[str]],
    width: int,
    *,
    colour: bool,
) -> list[str]:
    lines = []
    settled = [row for row in failed_rows(rows, wanted) if row.phase not in _ON_THE_WAY]
    for row in settled[:_SHOWN]:
        kind = ("failed" if row.roll_error else row.phase.value) + ("" if row.required else " (optional)")
        lines.append(
            f"{paint(kind, RED if row.required else YELLOW, on=colour)} {paint(str(row.id), BOLD, on=colour)}: {why(row)}"
        )
        lines += [f"  | {cut(text, width - 4)}" if text.strip() else "  |" for text in log_tails.get(row.id, ())]
        if row.log and (row.phase is Phase.FAILED or row.roll_error):
            lines.append(f"  log: {row.log}")
    if len(settled) > _SHOWN:
        lines.append(
            f"and {count(len(settled) - _SHOWN, 'more agent')}: {listing((row.id.instance for row in settled[_SHOWN:]), 20)}"
        )
    return lines


_ON_THE_WAY: Final = frozenset(
    {Phase.PENDING, Phase.FORKED, Phase.IMPORTING, Phase.STARTING, Phase.STOPPING, Phase.DRAINING}
)
