"""Events without a node: from publishers to subscribers of the same process, for agents run by hand and in tests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable

_lock = threading.Lock()
_listeners: list[Listener] = []


class Listener:
    """Takes what is posted in this process and begins with one of `prefixes`, on the loop that made it; until closed."""

    def __init__(self, prefixes: Iterable[bytes], on_frame: Callable[[bytes], None]) -> None:
        self._prefixes = tuple(prefixes)
        self._on_frame = on_frame
        self._loop = asyncio.get_running_loop()
        with _lock:
            _listeners.append(self)

    def close(self) -> None:
        with _lock, contextlib.suppress(ValueError):
            _listeners.remove(self)

    def offer(self, frame: bytes) -> None:
        if not frame.startswith(self._prefixes):
            return
        if _running_loop() is self._loop:
            self._on_frame(frame)
            return
        with contextlib.suppress(RuntimeError):  # their loop was closed
            self._loop.call_soon_threadsafe(self._on_frame, frame)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def post(frame: bytes) -> bool:
    """Hand a frame to everybody in this process who wants it."""
    with _lock:
        listeners = tuple(_listeners)
    for listener in listeners:
        listener.offer(frame)
    return True
