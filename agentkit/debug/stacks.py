"""Where every thread and task of this process is now, and since when. Nothing of it is stopped for that."""

from __future__ import annotations

import asyncio
import linecache
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Final

from agentkit.clock import now_s

#: Most threads, tasks and frames of each that are told of, and characters of a source line.
MAX_THREADS: Final = 200
MAX_TASKS: Final = 500
MAX_FRAMES: Final = 40
MAX_LINE: Final = 160

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def threads() -> dict[str, Any]:
    """Python's threads with their frames, outermost first, the loop's own first; others by name. Ages in seconds."""
    known = {thread.ident: thread for thread in threading.enumerate()}
    told, native = [], _native()
    here = threading.get_ident()
    frames = sys._current_frames()
    for ident, frame in sorted(frames.items(), key=lambda item: item[0] != here):
        thread = known.get(ident)
        tid = thread.native_id if thread is not None else None
        _, age_s = native.pop(tid or 0, ("", None))
        told.append(
            {
                "name": thread.name if thread is not None else f"unknown {ident}",
                "age_s": age_s,
                "daemon": bool(thread and thread.daemon),
                "frames": list(_outwards(frame))[:MAX_FRAMES][::-1],
            }
        )
    others = [{"name": name, "age_s": age_s} for name, age_s in native.values()]
    return {"threads": told[:MAX_THREADS], "others": others[:MAX_THREADS], "left_out": max(0, len(told) - MAX_THREADS)}


def tasks(since: Mapping[asyncio.Task[Any], tuple[float, str]]) -> dict[str, Any]:
    """Every task of the running loop, the oldest first, those of unknown age last. `since`: when it began, and what for."""
    now = now_s()
    told: list[dict[str, Any]] = []
    own = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is own:
            continue
        began_s, what = since.get(task, (None, ""))
        frames, waits_for = _chain(task.get_coro())
        told.append(
            {
                "name": task.get_name()[:MAX_LINE],
                "for": what,
                "age_s": None if began_s is None else round(max(0.0, now - began_s), 3),
                "waits_for": waits_for,
                "frames": frames,
            }
        )
    told.sort(key=lambda it: (it["age_s"] is None, -(it["age_s"] or 0.0), it["name"]))
    return {"tasks": told[:MAX_TASKS], "left_out": max(0, len(told) - MAX_TASKS)}


def _chain(awaited: Any) -> tuple[list[dict[str, Any]], str]:
    """The frames of a coroutine and of what it awaits, outermost first; then what the innermost waits for."""
    frames: list[dict[str, Any]] = []
    while awaited is not None and len(frames) < MAX_FRAMES:
        frame, inner = _step(awaited)
        if frame is None:
            return frames, type(awaited).__name__
        frames.append(_told(frame))
        awaited = inner
    return frames, ""


def _step(awaited: Any) -> tuple[FrameType | None, Any]:
    for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
        if hasattr(awaited, f"{prefix}_frame"):
            return getattr(awaited, f"{prefix}_frame"), getattr(awaited, inner)
    return None, None


def _outwards(frame: FrameType | None) -> Iterator[dict[str, Any]]:
    while frame is not None:
        yield _told(frame)
        frame = frame.f_back


def _told(frame: FrameType) -> dict[str, Any]:
    code = frame.f_code
    line = linecache.getline(code.co_filename, frame.f_lineno).strip()
    return {"file": code.co_filename, "line": frame.f_lineno, "function": code.co_qualname, "code": line[:MAX_LINE]}


def _native() -> dict[int, tuple[str, float | None]]:
    """Thread id -> name and age in seconds, of all threads, as the kernel knows them."""
    found: dict[int, tuple[str, float | None]] = {}
    try:
        with open("/proc/uptime") as file:
            uptime_s = float(file.read().split()[0])
        for entry in os.scandir("/proc/self/task"):
            with open(f"{entry.path}/stat") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
            found[int(entry.name)] = name, round(max(0.0, uptime_s - int(rest.split()[19]) / _TICKS_PER_S), 2)
    except (OSError, ValueError, IndexError):
        return found  # a thread that ended meanwhile: the rest will do
    return found
