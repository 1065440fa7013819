"""Files as resources: mapped into memory, shared between processes by the kernel, and its to take back."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def mapped(path: str | os.PathLike[str]) -> mmap.mmap | bytes:
    """The file, read-only; `b""` for an empty one, which can't be mapped. OSError: it can't be read.

    Pages are read when they are looked at, are shared by all processes that map the file, and go when the kernel needs room. Never
    write to a file that is mapped, nor shorten it: put a new one in its place (`os.replace`)."""
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def unmap(value: object) -> None:
    """Let go of a mapped file; what still looks into it keeps it, until that is gone."""
    if isinstance(value, mmap.mmap):
        try:
            value.close()
        except BufferError:
            return
