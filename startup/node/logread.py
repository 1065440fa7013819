"""Reads log files in bounded pieces: the last lines, or what came after a position. Keeps nothing between two questions.

A rotation (logfiles.py) moves the front of a file to `PATH.1` and leaves the file shorter: a position behind its end tells that,
and what was not read yet is found in the copy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

#: How much is read at a time, from the end of a file backwards.
_BLOCK: Final = 64 * 1024


class Piece(NamedTuple):
    """Whole lines, and the position to ask for next."""

    lines: list[str]
    cursor: int  #: bytes from the file's beginning
    more: bool  #: there was more than was asked for: `lines` is its end (last), or ask again at once (after)


def last_lines(path: str | Path, number: int) -> list[str]:
    """The last `number` lines, those of the file rotated away before it (`PATH.1`) included; [] when there is no such file."""
    lines = _last_lines(Path(path), number)
    if len(lines) < number:
        lines = _last_lines(Path(f"{path}.1"), number - len(lines)) + lines
    return lines


def last(path: str | Path, number: int, max_bytes: int) -> Piece:
    """`last_lines`, but at most the last `max_bytes` of text, and the position behind them."""
    cursor = _whole_size(Path(path))  # before the lines are read: what comes meanwhile may be told twice, never lost
    lines, size, kept = last_lines(path, number), 0, 0
    for line in reversed(lines):
        size += len(line) + 1
        if size > max_bytes and kept:
            break
        kept += 1
    return Piece([line[-max_bytes:] for line in lines[len(lines) - kept :]], cursor, kept < len(lines))


def after(path: str | Path, cursor: int, max_bytes: int) -> Piece:
    """The whole lines behind `cursor`, as far as `max_bytes` reach; a longer line is told in parts."""
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError:
        return Piece([], 0, more=False)
    if cursor <= size:
        return _after(path, cursor, max_bytes)
    rest = _after(Path(f"{path}.1"), cursor, max_bytes)
    if rest.lines:
        return rest._replace(more=True)
    return _after(path, 0, max_bytes)


def _after(path: Path, cursor: int, max_bytes: int) -> Piece:
    try:
        with path.open("rb") as file:
            file.seek(max(0, cursor))
            data = file.read(max_bytes + 1)
    except OSError:
        return Piece([], cursor, more=False)
    is_cut = len(data) > max_bytes
    end = data.rfind(b"\n", 0, max_bytes) + 1 or (max_bytes if is_cut else 0)
    return Piece(data[:end].decode("utf-8", "replace").splitlines(), max(0, cursor) + end, more=is_cut)


def _whole_size(path: Path) -> int:
    """Up to the end of its last whole line."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - _BLOCK)
            file.seek(start)
            return start + (file.read(size - start).rfind(b"\n") + 1 or size - start)
    except OSError:
        return 0


def _last_lines(path: Path, number: int) -> list[str]:
    if number <= 0:
        return []
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= number:
                size = min(_BLOCK, position)
                position = file.seek(position - size)
                data = file.read(size) + data
    except OSError:
        return []
    return data.decode("utf-8", "replace").splitlines()[-number:]
