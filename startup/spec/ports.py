"""Who has which port on which host, and which is the next free one. Pure.

Lives in spec/ and not in plan/: ports are part of the resolved fleet, and spec/ may not import plan/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Final

from agentkit.names import AgentId
from startup.spec.fleet import Fleet
from startup.spec.source import Place
from startup.spec.units import PortRange

HIGHEST_PORT: Final = 65535

#: What an agent had before: (service port, health port).
PortPair = tuple[int, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One use of one port on one host."""

    host: str  #: resolved address: two machines with one address share their ports
    port: int
    owner: AgentId | str  #: an agent, or "node of pc2"
    what: str  #: "service port", "health port", "node port", "config.metrics_port", ...
    at: str = ""
    place: Place | None = None
    from_config: bool = False  #: named in the agent's own `config`; its own service port may be named there
    binds: bool = True  #: False: `config` names it, perhaps as the address of something else

    def __str__(self) -> str:
        return f"{self.what} of {self.owner}"


class PortBook:
    """Claims in the order in which they were made."""

    def __init__(self, claims: Iterable[Claim] = (), *, never: Iterable[int] = ()) -> None:
        """`never`: ports that are not given out."""
        self._by_port: dict[tuple[str, int], list[Claim]] = {}
        self._never = frozenset(never)
        self._lowest: dict[tuple[str, PortRange], int] = {}  # for a thousand agents 25 ms instead of 2.5 s
        for claim in claims:
            self.add(claim)

    def add(self, claim: Claim) -> None:
        self._by_port.setdefault((claim.host, claim.port), []).append(claim)

    def is_free(self, host: str, port: int) -> bool:
        """Whether it may be given out."""
        return (host, port) not in self._by_port and port not in self._never and 1 <= port <= HIGHEST_PORT

    def lowest_free(self, host: str, wanted: PortRange, *, above: int | None = None) -> int | None:
        """The lowest free port of the range: above `above` if there is one, else from its start. None: it is full."""
        low = self._lowest.get((host, wanted), wanted.first)  # claims are never taken back: nothing below is free
        start = low if above is None else max(low, above + 1)
        for port in chain(range(start, wanted.last + 1), range(low, min(start, wanted.last + 1))):
            if self.is_free(host, port):
                if above is None:
                    self._lowest[host, wanted] = port
                return port
        return None

    def free_instead(self, claim: Claim, wanted: PortRange | None) -> int | None:
        """A port to suggest in place of `claim`'s: of the range, else the next one up."""
        found = self.lowest_free(claim.host, wanted) if wanted else None
        return found or self.lowest_free(claim.host, PortRange(min(claim.port + 1, HIGHEST_PORT), HIGHEST_PORT))

    def clashes(self) -> Iterator[tuple[Claim, Claim]]:
        """(first, later) for each claim on a port that is another's already; of two names in `config` neither is the owner."""
        for claims in self._by_port.values():
            first, *others = sorted(claims, key=lambda claim: not claim.binds)  # stable: else in the order of claiming
            for later in others:
                if first.binds and (first.owner != later.owner or (first.what != later.what and not later.from_config)):
                    yield first, later


def ports_of(fleet: Fleet) -> Mapping[AgentId, PortPair]:
    """What `load(previous_ports=...)` wants of the last revision, so that agents keep the ports they were given."""
    return {spec.id: (spec.port, spec.health_port) for spec in fleet.agents}
