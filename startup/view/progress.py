"""The live picture of `up` and `down`: a bar, a table of groups by machine, who is slow and why, who failed.

`board` is pure and fits any number of agents into the terminal it is given; `LiveBoard` paints it in place. Painting is
done by hand: importing rich takes 75 ms, a tenth of a whole cold start.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, TextIO

from agentkit.names import AgentId
from startup.plan.phase import COMING_UP, UP, Phase
from startup.plan.row import AgentRow
from startup.view.colour import BOLD, CYAN, DIM, GREEN, RED, YELLOW, paint
from startup.view.document import why
from startup.view.verdict import HOPELESS
from startup.view.words import count, duration, fit, listing

#: Repaints per second at most: more is not seen, and each costs about a millisecond that the fleet could use.
PAINTS_PER_S: Final = 10.0
#: Without a terminal: seconds between two lines about how far it is.
LINE_EVERY_S: Final = 2.0


def board(
    cluster: str,
    rows: Mapping[AgentId, AgentRow],
    wanted: Collection[AgentId],
    *,
    elapsed_s: float,
    now_s: float,
    width: int,
    height: int,
    colour: bool = False,
) -> list[str]:
    """At most `height` lines of at most `width` characters. `now_s`: seconds since the epoch, for how long somebody starts."""
    ours = [rows[id] for id in wanted if id in rows]
    ready = sum(row.phase in UP for row in ours)
    lost = sum(row.phase in HOPELESS for row in ours)
    lines = [_bar_line(cluster, ready, lost, len(wanted), elapsed_s, width, colour=colour)]
    details = _details(ours, now_s=now_s, width=width, colour=colour)
    room = max(0, height - len(lines) - len(details))
    lines += _groups(rows, wanted, room=room, width=width, colour=colour)
    return [*lines, *details][:height]


def _bar_line(cluster: str, ready: int, lost: int, total: int, elapsed_s: float, width: int, *, colour: bool) -> str:
    tail = f"  {ready}/{total} ready" + (f", {lost} not" if lost else "") + f"  {duration(elapsed_s)}"
    head = fit(cluster, max(0, min(24, width - len(tail) - 10)))
    head += "  " if head else ""
    cells = max(1, min(50, width - len(head) - len(tail)))
    full, bad = (round(cells * part / total) if total else 0 for part in (ready, lost))
    full = min(full, cells - bad)
    bar = (
        paint("█" * full, GREEN, on=colour)
        + paint("▒" * bad, RED, on=colour)
        + paint("░" * (cells - full - bad), DIM, on=colour)
    )
    return paint(head, BOLD, on=colour) + bar + tail


def _groups(
    rows: Mapping[AgentId, AgentRow], wanted: Collection[AgentId], *, room: int, width: int, colour: bool
) -> list[str]:
    """`GROUP  main_pc  pc2`: how many of how many are up. What is not finished comes first when there is too little room."""
    machines = sorted({str(id.machine) for id in wanted})
    tally: dict[str, dict[str, list[int]]] = defaultdict(lambda: {machine: [0, 0] for machine in machines})
    for id in wanted:
        row = rows.get(id)
        cell = tally[row.group if row else "…"][id.machine]
        cell[0] += row is not None and row.phase in UP
        cell[1] += 1
    if room < 2 or not tally:
        return []
    finished = {group: all(up == total for up, total in cells.values()) for group, cells in tally.items()}
    shown = list(tally)
    if len(shown) > room - 1:
        shown = sorted(shown, key=finished.__getitem__)[: room - 2]
    label = min(28, max(5, *map(len, shown))) if shown else 5
    cell_width = max(7, *(len(fit(machine, 16)) for machine in machines))
    fitting = machines[: max(1, (width - label - 2) // (cell_width + 2))]
    heading = fit("GROUP", label).ljust(label) + "".join(f"  {fit(machine, 16):>{cell_width}}" for machine in fitting)
    lines = [paint(heading, DIM, on=colour)]
    for group in shown:
        cells = "".join(f"  {_fraction(*tally[group][machine]):>{cell_width}}" for machine in fitting)
        lines.append(paint(f"{fit(group, label):<{label}}{cells}", GREEN if finished[group] else "0", on=colour))
    hidden = [group for group in tally if group not in shown]
    if hidden:
        done = sum(finished[group] for group in hidden)
        lines.append(paint(f"and {count(len(hidden), 'more group')}, {done} of them ready", DIM, on=colour))
    return lines


def _fraction(up: int, total: int) -> str:
    return f"{up}/{total}" if total else "-"


def _details(ours: Sequence[AgentRow], *, now_s: float, width: int, colour: bool) -> list[str]:
    """One line each for who starts, who waits for what, and whatever went wrong."""
    lines = []

    def line(label: str, text: str, shade: str) -> None:
        lines.append(paint(f"{label:<10}", shade, on=colour) + fit(text, width - 10))

    coming = sorted((row for row in ours if row.phase in COMING_UP), key=lambda row: row.stamps.forked_s or now_s)
    if coming:
        each = (f"{row.id.instance} {duration(now_s - (row.stamps.forked_s or now_s))}" for row in coming)
        line("starting", listing(each, 4), CYAN)
    if waits := waited_for(ours):
        line("waiting", listing((f"{number} for {name}" for name, number in waits), 4), DIM)
    for row in [row for row in ours if row.phase is Phase.BACKOFF][:3]:
        line("again", f"{row.id.instance}: {row.last_exit or row.last_error} {row.reason}", YELLOW)
    broken = [row for row in ours if row.phase in (Phase.FAILED, Phase.UNREACHABLE)]
    for row in broken[:5]:
        line("failed", f"{row.id.instance}: {why(row)}", RED)
    if len(broken) > 5:
        line("failed", f"and {len(broken) - 5} more", RED)
    skipped = Counter(row.because or row.reason for row in ours if row.phase is Phase.SKIPPED)
    if skipped:
        line("skipped", listing((f"{number} because of {cause}" for cause, number in skipped.most_common()), 3), YELLOW)
    return lines


def waited_for(rows: Iterable[AgentRow]) -> list[tuple[str, int]]:
    """What waiting agents wait for, with the number of those that do, the most wanted first."""
    names = Counter(
        name for row in rows if row.phase is Phase.WAITING for name in row.waiting_for or (row.reason or "its turn",)
    )
    return sorted(names.items(), key=lambda item: (-item[1], item[0]))


class LiveBoard:
    """Paints boards over one another on a terminal. Use as a context manager; `paint` as often as rows change."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines = 0
        self._painted_s = float("-inf")

    def __enter__(self) -> LiveBoard:
        self._out.write("\x1b[?25l")  # no cursor while it jumps about
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()
        self._out.write("\x1b[?25h")
        self._out.flush()

    def wait_s(self, now_s: float) -> float:
        """How long until the next paint is due; 0: now. `now_s` is monotonic."""
        return max(0.0, self._painted_s + 1 / PAINTS_PER_S - now_s)

    def size(self) -> tuple[int, int]:
        """Columns and lines that a board may use: one line is left for the cursor, one column so that nothing wraps."""
        try:
            size = os.get_terminal_size(self._out.fileno())
        except OSError:
            return 79, 23
        return max(20, size.columns - 1), max(3, size.lines - 1)

    def paint(self, lines: Sequence[str], now_s: float) -> None:
        up = f"\x1b[{self._lines}A" if self._lines else ""
        # each line is cleared behind its text, and what was longer before is cleared below: no flicker
        self._out.write(up + "\r" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._out.flush()
        self._lines = len(lines)
        self._painted_s = now_s

    def clear(self) -> None:
        """Takes the board away, so that what follows stands where it stood."""
        if self._lines:
            self._out.write(f"\x1b[{self._lines}A\r\x1b[J")
            self._lines = 0


class SparseLines:
    """Progress without a terminal: a line every few seconds while something changes, and one per failure."""

    def __init__(self) -> None:
        self._said_s = 0.0  # a start that is over sooner than LINE_EVERY_S needs no line
        self._failed: set[AgentId] = set()

    def lines(self, rows: Mapping[AgentId, AgentRow], wanted: Collection[AgentId], *, elapsed_s: float) -> list[str]:
        """What is new since the last call."""
        ours = [rows[id] for id in wanted if id in rows]
        result = []
        for row in ours:
            if row.phase in (Phase.FAILED, Phase.UNREACHABLE) and row.id not in self._failed:
                self._failed.add(row.id)
                result.append(f"{row.id}: {row.phase}: {why(row)}")
            elif row.phase not in (Phase.FAILED, Phase.UNREACHABLE):
                self._failed.discard(row.id)
        if elapsed_s - self._said_s >= LINE_EVERY_S:
            self._said_s = elapsed_s
            ready = sum(row.phase in UP for row in ours)
            waits = listing((f"{number} for {name}" for name, number in waited_for(ours)), 3)
            coming = listing((row.id.instance for row in ours if row.phase in COMING_UP), 4)
            said = f"{ready}/{len(wanted)} ready after {duration(elapsed_s)}"
            result.append(
                "; ".join(filter(None, [said, coming and f"starting {coming}", waits and f"waiting {waits}"]))
            )
        return result
