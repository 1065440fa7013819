"""Locks of names, of which there is one each: what a node elects leaders by, and those that it has by itself (`registry: mesh`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import msgpack

from agentkit.observe.log import get_logger
from startup.node.paths import write_atomically
from startup.node.store import Incarnations

log = get_logger("node.leaders")

#: After a disk that takes nothing, or a Consul that can't be spoken with, in seconds.
RETRY_S: Final = 5.0


class Locks(Protocol):
    """Where a name's lock comes from. What is got or lost is told through callbacks, never from within a call."""

    #: Whether a term that only its leader knows of can be believed.
    believes: bool

    @property
    def until_s(self) -> float | None:
        """Until when locks that are ours stay ours; None: until they are released."""
        ...

    def want(self, name: str) -> None: ...
    def unwant(self, name: str) -> None: ...
    def release(self, name: str, fence: int) -> None: ...


class Fences:
    """The greatest fences that were seen, on disk."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> dict[str, int]:
        try:
            return {str(name): int(fence) for name, fence in msgpack.unpackb(self._file.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            log.warning("fences.forgotten", file=str(self._file), error=repr(exc))
            return {}

    def keep(self, fences: Mapping[str, int]) -> None:
        """One that can't be kept is kept with the next."""
        try:
            write_atomically(self._file, msgpack.packb(dict(fences)), durable=False)
        except OSError as exc:
            log.warning("fences.not_kept", file=str(self._file), error=str(exc))


class OwnLocks:
    """This node's own: nobody else asks for them."""

    believes = True
    until_s = None

    def __init__(self, incarnations: Incarnations, on_got: Callable[[str, int], None]) -> None:
        """Fences are incarnations: numbers that are never given twice, whatever dies."""
        self._incarnations = incarnations
        self._on_got = on_got
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def want(self, name: str) -> None:
        self._later(name, 0.0)

    def unwant(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def release(self, name: str, fence: int) -> None: ...

    def close(self) -> None:
        for name in tuple(self._timers):
            self.unwant(name)

    def _later(self, name: str, after_s: float) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(after_s, self._get, name)

    def _get(self, name: str) -> None:
        del self._timers[name]
        try:
            fence = self._incarnations.take()
        except OSError as exc:
            log.error("leader.not_elected", leader=name, error=str(exc))
            self._later(name, RETRY_S)
        else:
            self._on_got(name, fence)
