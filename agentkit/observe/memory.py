"""Giving memory back to the machine."""

from __future__ import annotations

import gc
from typing import Final

_LIBC: Final = None  #: of this process: whatever libc it runs with


def give_back() -> None:
    """Collect garbage, and let the allocator return what is free to the kernel (glibc; others do it by themselves).

    What was there before a fork and was frozen (gc.freeze) is not looked at, so that its pages stay shared. A few milliseconds, and
    10 ms for each 100 MB that the garbage collector has to look at."""
    gc.collect()
    import ctypes  # few processes need it before they sleep

    trim = getattr(ctypes.CDLL(_LIBC), "malloc_trim", None)
    if trim is not None:
        trim(0)
