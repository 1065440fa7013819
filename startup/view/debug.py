"""`agentkit debug` as text: answers of agents in, lines out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from startup.view.words import columns, count, cut, duration, number


def lines(what: str, answer: Mapping[str, Any], *, width: int, rows: int) -> list[str]:
    """`rows`: of each table, at most."""
    if answer.get("from") == "log":
        return [f"the agent {answer['why']}; its stacks, as it wrote them into its log:", "", *answer["lines"]]
    match what:
        case "stacks":
            return [*_threads(answer, width), *_tasks(answer, width, left_out=answer.get("tasks_left_out", 0))]
        case "tasks":
            return list(_tasks(answer, width, left_out=answer["left_out"], is_short=True))
        case "heap":
            return list(_heap(answer, width, rows))
        case "gc":
            return list(_collector(answer, width, rows))
        case _:
            return list(_slow(answer, width, rows))


def _threads(answer: Mapping[str, Any], width: int) -> Iterator[str]:
    for thread in answer["threads"]:
        daemon = ", daemon" if thread["daemon"] else ""
        yield f"thread {thread['name']}{_aged(thread['age_s'])}{daemon}"
        yield from _frames(thread["frames"], width)
        yield ""
    if others := answer["others"]:
        yield "other threads: " + ", ".join(f"{it['name']}{_aged(it['age_s'])}" for it in others)
        yield ""


def _tasks(answer: Mapping[str, Any], width: int, *, left_out: int, is_short: bool = False) -> Iterator[str]:
    tasks = answer["tasks"]
    if not tasks:
        yield "no tasks"
    for task in tasks:
        what = f", {task['for']}" if task["for"] else ""
        yield f"task {task['name']}{_aged(task['age_s'])}{what}"
        yield from _frames(task["frames"][-1:] if is_short else task["frames"], width)
        if task["waits_for"]:
            yield f"    waits for a {task['waits_for']}"
        if not is_short:
            yield ""
    if left_out:
        yield f"and {count(left_out, 'task')} more"


def _frames(frames: Iterable[Mapping[str, Any]], width: int) -> Iterator[str]:
    for frame in frames:
        yield cut(f"    {_short(frame['file'])}:{frame['line']} {frame['function']}: {frame['code']}", width)


def _heap(answer: Mapping[str, Any], width: int, rows: int) -> Iterator[str]:
    yield f"{number(answer['objects'])} objects of its own, {_size(answer['bytes'])}; what it shares since the fork is not counted"
    yield ""
    yield from columns(
        [("TYPE", "SIZE", "COUNT", ""), *((it["type"], _size(it["bytes"]), number(it["count"]), "") for it in answer["types"][:rows])],
        right={1, 2}, width=width,
    )  # fmt: skip
    if "places" in answer:
        yield from ("", f"allocated within {duration(answer['seconds'])}, and still there:", "")
        yield from columns(
            [
                ("SIZE", "COUNT", "WHERE"),
                *(
                    (_size(it["bytes"]), number(it["count"]), f"{_short(it['file'])}:{it['line']}")
                    for it in answer["places"][:rows]
                ),
            ],
            right={0, 1}, width=width,
        )  # fmt: skip


def _collector(answer: Mapping[str, Any], width: int, rows: int) -> Iterator[str]:
    if "found" in answer:
        yield f"collected {count(answer['found'], 'object')} in {duration(answer['took_s'])}"
    yield f"{'on' if answer['enabled'] else 'OFF'}; {number(answer['tracked'])} objects tracked, {number(answer['frozen'])} frozen"
    if answer["uncollectable"]:
        yield f"uncollectable, kept in gc.garbage: {answer['uncollectable']}"
    yield ""
    table: list[Sequence[str]] = [("GENERATION", "NOW", "THRESHOLD", "RUNS", "COLLECTED", "UNCOLLECTABLE", "")]
    for index, (now, limit, stats) in enumerate(
        zip(answer["counts"], answer["thresholds"], answer["generations"], strict=True)
    ):
        table.append(
            (
                str(index), number(now), number(limit), number(stats["collections"]), number(stats["collected"]),
                number(stats["uncollectable"]), "",
            )
        )  # fmt: skip
    yield from columns(table, right={0, 1, 2, 3, 4, 5}, width=width)
    yield ""
    yield from columns(
        [("TYPE", "COUNT", ""), *((it["type"], number(it["count"]), "") for it in answer["types"][:rows])],
        right={1}, width=width,
    )  # fmt: skip


def _slow(answer: Mapping[str, Any], width: int, rows: int) -> Iterator[str]:
    if not answer["methods"]:
        yield "nothing was called yet"
        return
    table: list[Sequence[str]] = [("METHOD", "CALLS", "P50", "P99", "MEAN", "MAX OF LATE", "")]
    table += [
        (
            it["method"], number(it["calls"]), duration(it["p50_s"]), duration(it["p99_s"]), duration(it["mean_s"]),
            duration(it["max_s"]) if it["max_s"] is not None else "-", "",
        )
        for it in answer["methods"][:rows]
    ]  # fmt: skip
    yield from columns(table, right={1, 2, 3, 4, 5}, width=width)
    if answer["calls"]:
        yield from ("", "slowest calls of late:", "")
        slow = [("METHOD", "TOOK", "AGO", "OUTCOME", "TRACE")]
        slow += [
            (it["method"], duration(it["seconds"]), duration(it["ago_s"]), it["outcome"], it["trace_id"] or "-")
            for it in answer["calls"][:rows]
        ]
        yield from columns(slow, right={1, 2}, width=width)


def _aged(age_s: float | None) -> str:
    return f", {duration(age_s)} old" if age_s is not None else ""


def _short(file: str) -> str:
    """Its last three parts say enough."""
    return str(PurePath(*PurePath(file).parts[-3:]))


def _size(number_of_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number_of_bytes >= size:
            return f"{number_of_bytes / size:.1f} {unit}"
    return f"{number_of_bytes} B"
