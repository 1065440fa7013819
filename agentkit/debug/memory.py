"""What this process's memory holds: objects by type, what is allocated while one watches, and what the collector does."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections import Counter
from contextlib import suppress
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.errors import BadRequest

#: Most types and places that are told of.
MAX_ROWS: Final = 100
#: Longest time that allocations are traced for, in seconds: meanwhile everything that allocates is some two times slower.
MAX_SECONDS: Final = 60.0


async def heap(seconds: float, rows: int) -> dict[str, Any]:
    """Objects by type; with `seconds`, also where what was allocated within them, and is still there, comes from."""
    if not 0 <= seconds <= MAX_SECONDS:
        raise BadRequest(f"{seconds:g} seconds of tracing, want 0 to {MAX_SECONDS:g}")
    told = {"places": await _traced(seconds, rows), "seconds": seconds} if seconds else {}
    return {**await asyncio.to_thread(_types, rows), **told}


def collector(*, collects: bool, rows: int) -> dict[str, Any]:
    """How the garbage collector fares. `collects`: run it first, on the loop, which stands still for as long."""
    told: dict[str, Any] = {}
    if collects:
        began_s = now_s()
        told = {"found": gc.collect(), "took_s": round(now_s() - began_s, 4)}
    objects = gc.get_objects()
    return told | {
        "enabled": gc.isenabled(),
        "thresholds": gc.get_threshold(),
        "counts": gc.get_count(),
        "generations": gc.get_stats(),
        "uncollectable": len(gc.garbage),
        "tracked": len(objects),
        "frozen": gc.get_freeze_count(),
        "types": [{"type": name, "count": n} for name, n in Counter(map(_name_of, objects)).most_common(rows)],
    }


async def _traced(seconds: float, rows: int) -> list[dict[str, Any]]:
    if tracemalloc.is_tracing():
        raise BadRequest("allocations are traced already: by another `debug`, or by the agent itself")
    tracemalloc.start()
    try:
        await asyncio.sleep(seconds)
        snapshot = await asyncio.to_thread(tracemalloc.take_snapshot)
    finally:
        tracemalloc.stop()
    mine = snapshot.filter_traces((tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__),))
    top = (await asyncio.to_thread(mine.statistics, "lineno"))[:rows]
    return [
        {"file": it.traceback[0].filename, "line": it.traceback[0].lineno, "bytes": it.size, "count": it.count}
        for it in top
    ]


def _types(rows: int) -> dict[str, Any]:
    """What the collector tracks of this process's own: what was there before the fork is frozen, and not counted."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for found in gc.get_objects():
        name = _name_of(found)
        counts[name] += 1
        with suppress(Exception):  # whatever an author's __sizeof__ does
            sizes[name] += sys.getsizeof(found)
    return {
        "objects": counts.total(),
        "bytes": sizes.total(),
        "types": [{"type": name, "bytes": size, "count": counts[name]} for name, size in sizes.most_common(rows)],
    }


def _name_of(found: object) -> str:
    cls = type(found)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
