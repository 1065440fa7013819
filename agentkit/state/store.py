"""What a state is kept in: snapshots, numbered, in two places that take turns, so that writing one leaves the other alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol

from agentkit.names import Incarnation

#: How many snapshots there are: the last one and the one before it.
PLACES: Final = 2
_CHECKSUM_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One state as it was saved."""

    number: int  #: one more than that of the snapshot before it
    version: int  #: State.version of the class that saved it
    incarnation: int  #: who saved it
    saved_s: float  #: seconds since the epoch
    data: bytes  #: JSON
    checksum: bytes

    @classmethod
    def of(cls, number: int, version: int, incarnation: int, saved_s: float, data: bytes) -> Snapshot:
        return cls(
            number=number,
            version=version,
            incarnation=incarnation,
            saved_s=saved_s,
            data=data,
            checksum=_checksum(number, version, data),
        )

    @property
    def place(self) -> int:
        return self.number % PLACES

    @property
    def is_whole(self) -> bool:
        return self.number >= 0 <= self.version and self.checksum == _checksum(self.number, self.version, self.data)


def digest(data: bytes) -> bytes:
    """Equal for what is the same state."""
    return blake2b(data, digest_size=_CHECKSUM_BYTES).digest()


def _checksum(number: int, version: int, data: bytes) -> bytes:
    return blake2b(f"{number} {version} ".encode() + data, digest_size=_CHECKSUM_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Found:
    """What a store holds: what can be read, newest first, whole or not, and for each place that can't be, why."""

    snapshots: Sequence[Snapshot] = ()
    unreadable: Sequence[str] = ()


class Store(Protocol):
    """One agent's snapshots. Every method may block; they are called from one thread at a time.

    They raise StateUnreachable (it may work later), StateDamaged (what is there is no store of ours), StateFenced (an incarnation
    that came later has it); `save` also StateNotSaved, with everything as it was before."""

    @property
    def kind(self) -> str:
        """As in the fleet file."""

    @property
    def where(self) -> str:
        """For operators: a path, an address. No secret is in it."""

    @property
    def remedy(self) -> str:
        """What an operator does to let the agent begin anew."""

    def claim(self, incarnation: Incarnation) -> None:
        """From now on this incarnation may save, and none that came before it."""

    def load(self) -> Found: ...

    def save(self, snapshot: Snapshot) -> None:
        """It replaces the one in its place, whole or not at all; durable when this returns."""

    def close(self) -> None:
        """Harmless when repeated, and when it was never opened. Does not raise."""
