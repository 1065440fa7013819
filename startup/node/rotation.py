"""When a machine's log files are looked at for their size; how they are rotated, logfiles.py knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from startup.node import logfiles

#: Log files are looked at for their size so often, in seconds.
ROTATE_EVERY_S: Final = 15.0


class Rotation:
    """Of one folder, from `begin` to `close`."""

    def __init__(self, folder: Path, *, beside: Callable[[], None] = lambda: None) -> None:
        """`beside`: also called with each look."""
        self._beside = beside
        self._folder = folder
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(ROTATE_EVERY_S, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Sizes are looked at here (10 us each), copying is done on a thread."""
        large = [path for path in self._folder.glob("*.log") if _size(path) > logfiles.MAX_BYTES]
        if large:
            asyncio.get_running_loop().run_in_executor(None, lambda: [logfiles.rotate_if_large(path) for path in large])
        self._beside()
        self.begin()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
