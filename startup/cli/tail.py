"""What is written to a log file of this machine from now on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: How much is read at a time.
_BLOCK: Final = 64 * 1024


class Follower:
    """One file as it grows. It need not exist yet, and may be rotated away or cut while it is read."""

    def __init__(self, path: str | Path, *, from_end: bool = True) -> None:
        self._path = Path(path)
        self._descriptor = -1
        self._rest = b""
        self._open()
        if self._descriptor >= 0 and from_end:
            os.lseek(self._descriptor, 0, os.SEEK_END)

    def read(self) -> Iterator[str]:
        """The whole lines that have come since the last call."""
        if self._descriptor < 0:
            self._open()
        while self._descriptor >= 0:
            yield from self._take()
            if not self._moved():
                return
            # what was written between the last read and the rotation
            yield from self._take()
            self.close()
            self._open()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._descriptor = -1

    def _take(self) -> Iterator[str]:
        while data := os.read(self._descriptor, _BLOCK):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", "replace")
        if os.lseek(self._descriptor, 0, os.SEEK_CUR) > os.fstat(self._descriptor).st_size:
            os.lseek(self._descriptor, 0, os.SEEK_SET)  # it was cut: begin again

    def _moved(self) -> bool:
        try:
            now = self._path.stat()
        except OSError:
            return False  # rotated, the new one is not there yet: the next call sees it
        mine = os.fstat(self._descriptor)
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)
