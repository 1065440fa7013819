"""Answers that are kept for a while: for whoever repeats a key, asks the same again, or finds nobody to ask. No clock."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from agentkit.wire.attachments import ContentPacker, unpack

V = TypeVar("V")

#: What an entry costs beside its own bytes, roughly.
_OVERHEAD_BYTES: Final = 200


class Frozen(NamedTuple):
    """A plain value as bytes: nobody can change it afterwards, and its size is known."""

    body: bytes
    frames: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return len(self.body) + sum(map(len, self.frames))

    def thaw(self) -> Any:
        return unpack(self.body, self.frames)


class Freezer:
    """Makes them. For one thread at a time; keep it: a packer is a cycle, which waits for the garbage collector."""

    def __init__(self) -> None:
        self._pack = ContentPacker().pack

    def freeze(self, value: object) -> Frozen:
        """`values.Unsendable` for what does not travel."""
        body, frames = self._pack(value)
        return Frozen(body, tuple(bytes(frame) for frame in frames))


class Kept(Generic[V]):
    """At most `entries` values of `max_bytes` together, each for `ttl_s`; for a new one the least recently used go."""

    def __init__(self, *, ttl_s: float, entries: int, max_bytes: int) -> None:
        self._ttl_s, self._entries, self._max_bytes = ttl_s, entries, max_bytes
        self._found: dict[Hashable, tuple[float, int, V]] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._found)

    @property
    def until_s(self) -> float:
        """When the last of them may be forgotten; 0: there is none."""
        return max((until_s for until_s, _, _ in self._found.values()), default=0.0)

    def get(self, key: Hashable, now_s: float) -> V | None:
        entry = self._found.get(key)
        if entry is None:
            return None
        until_s, size, value = entry
        del self._found[key]
        if now_s >= until_s:
            self.size -= size
            return None
        self._found[key] = entry  # the youngest now
        return value

    def clear(self) -> None:
        """Forget all."""
        self._found.clear()
        self.size = 0

    def expire(self, now_s: float) -> None:
        """Forget what is too old."""
        for key, (until_s, size, _) in tuple(self._found.items()):
            if now_s >= until_s:
                del self._found[key]
                self.size -= size

    def put(self, key: Hashable, value: V, size: int, now_s: float) -> None:
        """Keep `value`, which needs `size` bytes with its key; not at all where that alone is too much."""
        old = self._found.pop(key, None)
        if old is not None:
            self.size -= old[1]
        size += _OVERHEAD_BYTES
        if size > self._max_bytes or not self._entries:
            return
        self._found[key] = (now_s + self._ttl_s, size, value)
        self.size += size
        while len(self._found) > self._entries or self.size > self._max_bytes:
            _, gone, _ = self._found.pop(next(iter(self._found)))
            self.size -= gone
