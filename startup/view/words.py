"""Numbers, times and lists as people read them, cut to the width they get."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence


def duration(seconds: float) -> str:
    """At most seven characters: `84 ms`, `1.20 s`, `45 s`, `3m12s`, `2h05m`, `4d03h`. Below zero counts as nothing."""
    seconds = max(0.0, seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.0f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest_s:02}s"
    hours, rest_min = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{rest_min:02}m"
    return f"{hours // 24}d{hours % 24:02}h"


def count(number: int, noun: str) -> str:
    """`1 agent`, `84 agents`, `2 processes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def number(value: int) -> str:
    """At most five characters: `999`, `12.3k`, `4.5M`."""
    if value < 10_000:
        return str(value)
    for unit, size in (("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)):
        scaled = value / size
        if scaled < 999.5:
            return f"{scaled:.1f}{unit}" if scaled < 99.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0e}"


def fit(text: str, width: int) -> str:
    """`text` on one line and at most `width` characters, an ellipsis where it was cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)] + "…"


def cut(text: str, width: int) -> str:
    """`text` as it stands, its indentation kept, at most `width` characters."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def listing(names: Iterable[str], limit: int = 5) -> str:
    """`A, B, C and 4 more`."""
    every = list(names)
    shown = ", ".join(every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def columns(
    table: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    width: int,
    gap: str = "  ",
    paint: Callable[[int, int, str], str] = lambda _row, _column, cell: cell,
) -> list[str]:
    """Lines of aligned cells, first row the heading. `right`: columns of numbers. The last column gets what is left of
    `width`. `paint(row, column, cell)` may add escapes to a cell that is already aligned."""
    if not table:
        return []
    last = len(table[0]) - 1
    sizes = [max(len(row[column]) for row in table) for column in range(last)]
    rest = max(8, width - sum(sizes) - len(gap) * last)
    lines = []
    for y, row in enumerate(table):
        cells = [
            paint(y, x, cell.rjust(size) if x in right else cell.ljust(size))
            for x, (cell, size) in enumerate(zip(row[:last], sizes, strict=True))
        ]
        lines.append(gap.join([*cells, fit(row[last], rest)]).rstrip())
    return lines
