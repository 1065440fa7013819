"""Which agents there are, by what Consul says, and when not to believe that one is gone. Pure.

An entry that is no longer passing is dropped at once, unless Consul is in doubt: it was away or slow a moment ago, its state was
reset, or it does not show agents of our own machine that run and were registered. Who is kept in doubt goes when the doubt does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agentkit.directory.entries import Entry
from agentkit.names import AgentId

#: After trouble Consul is in doubt for so long, in seconds: others need up to 5 to be registered again, and a TTL lasts 15.
DOUBT_S: Final = 20.0


class Change(NamedTuple):
    seen: list[Entry]  #: new, or not what they were
    gone: list[AgentId]


class Sightings:
    """What is believed of the agents of other machines."""

    def __init__(self, doubt_s: float = DOUBT_S) -> None:
        self.known: dict[AgentId, Entry] = {}
        self.is_in_doubt = False  #: of the last answer
        self._doubt_s = doubt_s
        self._troubled_s: float | None = None

    def trouble(self, now_s: float) -> None:
        """Consul was away, slow, or its state was reset."""
        self._troubled_s = now_s

    def see(self, passing: Mapping[AgentId, Entry], now_s: float, *, misses_ours: bool = False) -> Change:
        """An answer, without our own agents. `misses_ours`: it does not show some that it ought to show. Older lives of who is
        known are not news."""
        self.is_in_doubt = misses_ours or (self._troubled_s is not None and now_s - self._troubled_s < self._doubt_s)
        seen = [
            entry
            for id, entry in passing.items()
            if (known := self.known.get(id)) is None or (known != entry and known.incarnation <= entry.incarnation)
        ]
        gone = [] if self.is_in_doubt else sorted(self.known.keys() - passing.keys())
        self.known |= {entry.id: entry for entry in seen}
        for id in gone:
            del self.known[id]
        return Change(seen, gone)
