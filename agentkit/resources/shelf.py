"""Which resource goes when there is no room for another: the one that nobody has used for longest. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Item:
    """One resource that is in memory, or whose room is kept while it comes or goes."""

    size: int  #: bytes
    pins: int = 0  #: how many use it now; it does not go before that is zero
    is_leaving: bool = False


class Shelf:
    """Items by name, least recently used first; `limit` bytes together, None: as many as there are."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.total = 0
        self._leaving = 0  #: bytes of `total` that will be free soon
        self._items: dict[str, Item] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def size(self, name: str) -> int:
        return self._items[name].size

    def put(self, name: str, size: int, *, pins: int = 0) -> None:
        """It is the youngest now; whether there is room is `excess`'s to say."""
        self.drop(name)
        self._items[name] = Item(size, pins)
        self.total += size

    def leave(self, name: str) -> None:
        """It goes: nobody gets it any more, and its room is free when it is dropped."""
        item = self._items[name]
        if not item.is_leaving:
            item.is_leaving = True
            self._leaving += item.size

    def drop(self, name: str) -> None:
        """Its room is free; harmless where it has none."""
        item = self._items.pop(name, None)
        if item is not None:
            self.total -= item.size
            self._leaving -= item.size if item.is_leaving else 0

    def pin(self, name: str) -> None:
        """Somebody uses it: it is the youngest, and stays."""
        item = self._items.pop(name)
        item.pins += 1
        self._items[name] = item

    def unpin(self, name: str) -> None:
        """They do not any more."""
        item = self._items[name]
        item.pins -= 1

    @property
    def pinned(self) -> int:
        """How many are in use, or come."""
        return sum(item.pins > 0 for item in self._items.values())

    def idle(self) -> list[str]:
        """Those that nobody uses, least recently used first."""
        return [name for name, item in self._items.items() if not item.pins and not item.is_leaving]

    def victim(self, needed: int = 0) -> str | None:
        """Who has to go so that `needed` bytes more fit; None: nobody has to, those that go already are enough, or nobody can."""
        if self.excess(needed) <= self._leaving:
            return None
        return next(iter(self.idle()), None)

    def excess(self, needed: int = 0) -> int:
        """How many bytes too many there are with `needed` more; 0: they fit."""
        return 0 if self.limit is None else max(0, self.total + needed - self.limit)
