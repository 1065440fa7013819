"""Rotation of files that other processes append to and never reopen.

Renaming would leave the writers with the old file. They have it open with O_APPEND, so each write lands at whatever the end is:
what was copied can be taken away from under them. On ext4 and xfs whole blocks are cut off the front (FALLOC_FL_COLLAPSE_RANGE) and
nothing that is written meanwhile is lost; elsewhere the file is truncated, and lines that come between the last copied byte and
the truncation (microseconds) are. Lines stay whole: the line that the cut goes through is completed in the copy and blanked here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from startup.node import linux

MAX_BYTES: Final = 10 * 1024 * 1024
KEEP: Final = 5

#: A line longer than this is cut by a rotation.
_LONGEST_LINE: Final = 64 * 1024


def rotate_if_large(path: Path | str, *, max_bytes: int = MAX_BYTES, keep: int = KEEP) -> bool:
    """Move what is in the log to `path.1` (and that to `.2`, ... up to `keep`) when it is longer than `max_bytes`.

    Whether it did. Blocks for the copying: 10 MB take 5-20 ms. Never raises for a full disk or a missing file: a log that can't be
    copied is simply cut, because a log that grows without end is worse."""
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_size <= max_bytes:
            return False
        _shift(path, keep)
        _empty(fd, path.with_name(path.name + ".1"))
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)
    return True


def _shift(path: Path, keep: int) -> None:
    for i in range(keep - 1, 0, -1):
        older = path.with_name(f"{path.name}.{i}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{i + 1}"))


def _empty(fd: int, copy: Path) -> None:
    block = os.fstat(fd).st_blksize
    cut = os.fstat(fd).st_size // block * block
    with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as target:
        _copy(fd, target.fileno(), 0, cut)
        tail = _line_end(fd, cut)
        if cut and linux.collapse(fd, cut):
            if tail:
                target.seek(0, os.SEEK_END)
                target.write(tail)
                os.pwrite(fd, b" " * (len(tail) - 1) + b"\n", 0)  # not through O_APPEND: this descriptor is ours
            return
        done = cut
        while (size := os.fstat(fd).st_size) > done:  # what came while we copied
            _copy(fd, target.fileno(), done, size)
            done = size
        os.ftruncate(fd, 0)


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        sent = os.sendfile(target, source, start, end - start)
        if not sent:
            return
        start += sent


def _line_end(fd: int, offset: int) -> bytes:
    """What is left of the line that `offset` is in, its newline included; b"" at a line's beginning, or when it has no end yet."""
    if os.pread(fd, 1, offset - 1) == b"\n":
        return b""
    data = os.pread(fd, _LONGEST_LINE, offset)
    end = data.find(b"\n") + 1
    return data[:end]
