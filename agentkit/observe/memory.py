"""Giving memory back to the machine."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Collect garbage, and let the allocator return what is free to the kernel (glibc; others do it by themselves).

    What was there before a fork and was frozen (gc.freeze) is not looked at, so that its pages stay shared. A few milliseconds, and
    10 ms for each 100 MB that the garbage collector has to look at."""
    gc.collect()
    trim = trimmer()
    if trim is not None:
        trim(0)


@cache
def trimmer() -> Callable[[int], object] | None:
    """glibc's malloc_trim. A fork server asks once for all its children: importing ctypes costs each of them 0.3 MB."""
    import ctypes

    trim: Callable[[int], object] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim
