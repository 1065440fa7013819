"""The timeline as a picture: plain SVG written by hand, light background, legible in print and without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import pairwise
from typing import Final

from startup.view.timeline import STEPS, Bar, Timeline
from startup.view.words import count, duration

WIDTH: Final = 1200
_LEFT: Final = 252  # labels end here
_RIGHT: Final = 84  # room for the time behind the longest bar
_TOP: Final = 112
_BAND: Final = 20  # heading of a level
_FONT: Final = "font-family='DejaVu Sans, Verdana, Helvetica, Arial, sans-serif'"

_FILL: Final = {"waiting": "#dfe3e8", "fork": "#f0a33f", "import": "#4a86d8", "init": "#35a06b"}
_MEANING: Final = {
    "waiting": "waiting for dependencies",
    "fork": "fork",
    "import": "import",
    "init": "__init__, on_start, checks",
}
_CRITICAL: Final = "#c22f3d"
_INK: Final = "#20262e"
_FAINT: Final = "#6b7684"


def gantt(line: Timeline, *, title: str) -> str:
    """The whole document. One row per agent, grouped by level; the chain that made the start this long in red."""
    row = _row_height(len(line.bars))
    tops, headings, y = {}, [], float(_TOP)
    level = None
    for bar in line.bars:
        if bar.level != level:
            level = bar.level
            headings.append((level, y, sum(other.level == level for other in line.bars)))
            y += _BAND
        tops[bar.id] = y
        y += row
    bottom = y + 6
    scale = (WIDTH - _LEFT - _RIGHT) / max(line.total_s, 1e-9)
    height = f"{bottom + 44:.0f}"
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}' {_FONT}>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        _text(24, 34, title, size=18, weight="bold"),
        _text(24, 56, _summary(line), size=12, fill=_FAINT),
        *_legend(76),
        *_axis(line.total_s, scale, bottom),
    ]
    for number, top, size in headings:
        parts.append(f"<rect x='12' y='{top + 2:.1f}' width='{WIDTH - 24}' height='{_BAND - 4}' fill='#f4f6f8'/>")
        parts.append(_text(20, top + 14, f"level {number}", size=11, weight="bold", fill=_FAINT))
        parts.append(_text(84, top + 14, count(size, "agent"), size=11, fill=_FAINT))
    for bar in line.bars:
        parts += _row(bar, tops[bar.id], row, scale)
    for first, second in pairwise(line.critical):
        parts.append(_link(first, second, tops[first.id], tops[second.id], row, scale))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _row_height(rows: int) -> float:
    """Labels stay readable up to some 400 agents; beyond, only the slowest path is labelled."""
    return 15 if rows <= 120 else 11 if rows <= 400 else 4


def _summary(line: Timeline) -> str:
    path = " \u2192 ".join(bar.id.instance for bar in line.critical)
    if len(path) > 110:
        path = f"{len(line.critical)} agents, {line.critical[0].id.instance} \u2192 \u2026 \u2192 {line.critical[-1].id.instance}"
    slowest = f"; slowest path: {path}" if path else ""
    return f"{count(len(line.bars), 'agent')} ready in {duration(line.total_s)}{slowest}"


def _legend(y: float) -> Iterator[str]:
    x = 24.0
    for step in STEPS:
        yield f"<rect x='{x:.0f}' y='{y}' width='14' height='10' fill='{_FILL[step]}'/>"
        yield _text(x + 20, y + 9, _MEANING[step], size=11)
        x += 40 + 6.6 * len(_MEANING[step])
    yield f"<rect x='{x:.0f}' y='{y}' width='14' height='10' fill='none' stroke='{_CRITICAL}' stroke-width='1.6'/>"
    yield _text(x + 20, y + 9, "on the slowest path", size=11)


def _axis(total_s: float, scale: float, bottom: float) -> Iterator[str]:
    step_s = tick_s(total_s)
    for number in range(int(total_s / step_s + 1e-6) + 1):
        x = _LEFT + number * step_s * scale
        yield f"<line x1='{x:.1f}' y1='{_TOP - 4}' x2='{x:.1f}' y2='{bottom:.1f}' stroke='#e8ebef'/>"
        label = duration(number * step_s) if number else "0"
        yield _text(x, _TOP - 8, label, size=10, fill=_FAINT, anchor="middle")
        yield _text(x, bottom + 16, label, size=10, fill=_FAINT, anchor="middle")


def tick_s(total_s: float) -> float:
    """A round distance between two marks: at most ten of them."""
    size = 1e-3
    while True:
        for factor in (1, 2, 5):
            if total_s <= 10 * size * factor:
                return size * factor
        size *= 10


def _row(bar: Bar, top: float, row: float, scale: float) -> Iterator[str]:
    thick = row - (4 if row > 8 else 1)
    y = top + (row - thick) / 2
    if row > 8 or bar.critical:
        weight = "bold" if bar.critical else "normal"
        colour = _CRITICAL if bar.critical else _INK
        yield _text(_LEFT - 8, top + row / 2 + 3.5, _label(bar), size=10, fill=colour, weight=weight, anchor="end")
    told = ", ".join(f"{step} {duration(end - start)}" for step, start, end in bar.spans)
    yield f"<g><title>{escape(f'{bar.id}: ready after {duration(bar.ready_s)} ({told})')}</title>"
    for step, start, end in bar.spans:
        inset = thick / 2 - 1 if step == "waiting" else 0.0
        yield (
            f"<rect x='{_LEFT + start * scale:.1f}' y='{y + inset:.1f}' width='{max(0.6, (end - start) * scale):.1f}' "
            f"height='{thick - 2 * inset:.1f}' fill='{_FILL[step]}'/>"
        )
    yield "</g>"
    end_x = _LEFT + bar.ready_s * scale
    if bar.critical:
        start_x = _LEFT + bar.began_s * scale
        yield (
            f"<rect x='{start_x - 1:.1f}' y='{y - 1:.1f}' width='{max(2.0, end_x - start_x + 2):.1f}' height='{thick + 2:.1f}' "
            f"fill='none' stroke='{_CRITICAL}' stroke-width='1.6'/>"
        )
    if row > 8:
        yield _text(
            end_x + 6, top + row / 2 + 3.5, duration(bar.ready_s), size=9, fill=_CRITICAL if bar.critical else _FAINT
        )


def _label(bar: Bar) -> str:
    text = str(bar.id)
    return text if len(text) <= 34 else text[:33] + "\u2026"


def _link(first: Bar, second: Bar, first_top: float, second_top: float, row: float, scale: float) -> str:
    """From the moment of one's readiness down to the moment when that let the other begin."""
    x1, y1 = _LEFT + first.ready_s * scale, first_top + row / 2
    x2, y2 = _LEFT + second.began_s * scale, second_top + row / 2
    return (
        f"<path d='M{x1:.1f} {y1:.1f} V{(y1 + y2) / 2:.1f} H{x2:.1f} V{y2:.1f}' fill='none' stroke='{_CRITICAL}' "
        "stroke-width='1.2' stroke-dasharray='3 2'/>"
    )


def _text(
    x: float, y: float, text: str, *, size: int, fill: str = _INK, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{fill}' font-weight='{weight}' text-anchor='{anchor}'>"
        f"{escape(text)}</text>"
    )
