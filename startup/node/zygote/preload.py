"""Importing things once for all processes of a fleet, without leaving a thread behind.

A fork copies only the thread that forks; a library whose other threads are missing hangs at its first use. So the libraries that
start threads on import are told not to, and threads are counted after each module.
"""

from __future__ import annotations

import gc
import importlib
import os
import site
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

#: One thread for each numeric library, set before anything is imported; numpy left one behind uncapped and none capped.
THREAD_CAPS: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

#: What an agent, a node and a zygote need; imported by the boot process in this order.
OWN_MODULES: Final = (
    "startup.node.daemon",
    "agentkit.main",
    "agentkit.rehearsal",
)

#: A thread that is just ending is waited for, in seconds.
_THREAD_ENDS_S: Final = 0.1


class Preloaded(NamedTuple):
    """What `preload` did."""

    modules: tuple[str, ...]
    refused: Mapping[str, str]  #: module -> why; it is imported by each agent that needs it, after the fork
    files: Mapping[str, int]  #: source of what was imported outside of the Python installation -> mtime in ns
    tainted: bool = False  #: the last refused module left a thread in this process: it must not fork


def cap_threads(environ: dict[str, str] | os._Environ[str]) -> None:
    """Must come before the first import of anything numeric. What the operator set stays."""
    for name in THREAD_CAPS:
        environ.setdefault(name, "1")


def preload(modules: Sequence[str], refused: Mapping[str, str]) -> Preloaded:
    """Import `modules`, except those in `refused` (found out by an earlier image of this process); stops at one that leaves a thread."""
    reasons = dict(refused)
    if not modules:
        return Preloaded((), reasons, {})
    before = set(sys.modules)
    threads = thread_count()
    gc.disable()
    done: list[str] = []
    tainted = False
    for name in modules:
        if name in reasons:
            continue
        try:
            importlib.import_module(name)
        except BaseException as exc:  # noqa: BLE001 - a module may raise anything, and one that can't be imported is no reason to stop
            reasons[name] = f"{type(exc).__name__}: {exc}"
        else:
            done.append(name)
        left = _threads_left(threads)
        if left:
            reasons[name] = f"importing it left {left} thread{'s' if left > 1 else ''} behind, which a fork would lose"
            tainted = True
            break
    gc.collect()  # foreign modules may leave more than ours
    freeze()
    files = source_files(sys.modules[name] for name in set(sys.modules) - before)
    return Preloaded(tuple(done), reasons, files, tainted)


def source_files(modules: Any) -> dict[str, int]:
    """The files of `modules` with their mtimes, leaving out the Python installation's own and installed packages."""
    installed = _installed()
    files = {}
    for module in modules:
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and not path.startswith(installed):
            files[path] = mtime_ns(path)
    return files


def mtime_ns(path: str) -> int:
    """0 when the file is gone."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


def changed(files: Mapping[str, int]) -> list[str]:
    """Those of `files` that are no longer what was imported."""
    return sorted(path for path, then in files.items() if mtime_ns(path) != then)


def settle() -> int:
    """Once, before the first fork: everything that need not happen in each child. Returns how many threads that left behind."""
    threads = thread_count()
    rehearsal = sys.modules.get("agentkit.rehearsal")  # absent where a test preloads something else
    if rehearsal is not None:
        gc.freeze()  # so that the collection below only looks at what was rehearsed
        rehearsal.rehearse()
        gc.collect()
    freeze()
    return _threads_left(threads)


def freeze() -> None:
    """Hide everything from the collector, so that children never copy it for its sake, and let it begin its work.

    Imports run without it (a quarter faster) and leave 679 objects for it: not worth the 30 ms of a collection."""
    gc.freeze()
    gc.enable()


def thread_count() -> int:
    """Threads of this process as the kernel counts them: those that Python does not know of, too."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - only counted


def _threads_left(before: int) -> int:
    deadline_s = time.monotonic() + _THREAD_ENDS_S
    while (count := thread_count()) > before and time.monotonic() < deadline_s:
        time.sleep(0.005)
    return max(0, count - before)


def _installed() -> tuple[str, ...]:
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places.update(site.getsitepackages())
    return tuple(place + os.sep for place in places)
