"""Who leads, on one machine, without I/O: events in, deeds out.

    nobody -> wanted        somebody stands, and the name's lock is asked for (it may be another machine's)
    wanted -> held          the lock is ours: whoever has waited longest is elected
    held   -> revoked       the lock is not ours any more: the leader is told, and still counts until it has resigned or ended
    held, revoked -> nobody, wanted

A leader holds its name until it has resigned or nothing of its process is left: no conversation that ends, and no silence, takes it away.
So of the agents of one machine no two ever lead, whatever becomes of the lock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from agentkit.names import AgentId, Incarnation


class Candidate(NamedTuple):
    """One process of an agent."""

    id: AgentId
    incarnation: Incarnation


class Held(NamedTuple):
    candidate: Candidate
    fence: int
    is_revoked: bool = False


class Want(NamedTuple):
    """Ask for the lock of a name until it is ours."""

    name: str


class Unwant(NamedTuple):
    """Nobody stands any more."""

    name: str


class Release(NamedTuple):
    """Let go of a lock that is ours."""

    name: str
    fence: int


class Elected(NamedTuple):
    """To be written down, then told."""

    name: str
    candidate: Candidate
    fence: int


class Lost(NamedTuple):
    """To be told."""

    name: str
    candidate: Candidate
    why: str


Deed: TypeAlias = Want | Unwant | Release | Elected | Lost


@dataclass(slots=True)
class _Election:
    waiting: dict[Candidate, None] = field(default_factory=dict)  #: in the order in which they came
    held: Held | None = None
    is_wanted: bool = False


class Elections:
    """All names of one node."""

    def __init__(self) -> None:
        self._elections: dict[str, _Election] = {}

    @property
    def held(self) -> dict[str, Held]:
        return {name: election.held for name, election in self._elections.items() if election.held is not None}

    def resume(self, name: str, candidate: Candidate, fence: int) -> None:
        """A leader of an earlier node that is still there. Its lock is still ours."""
        self._elections.setdefault(name, _Election()).held = Held(candidate, fence)

    def stands(self, name: str, candidate: Candidate, claims: int = 0, *, is_believed: bool = False) -> list[Deed]:
        """A candidate asks. `claims`: the fence of the term that it is in, since an earlier node, or an earlier conversation; 0: it is in
        none, whatever we think. `is_believed`: a claim counts even when we know nothing of it, unless another was elected."""
        election = self._elections.setdefault(name, _Election())
        held = election.held
        if held is not None and held.candidate == candidate:
            if claims == held.fence and not held.is_revoked:
                return [Elected(name, candidate, claims)]
            if claims:
                return [Lost(name, candidate, "its lock was lost")]  # it resigns, then stands again
            election.waiting[candidate] = None
            return self._free(name, election)
        if claims:
            if held is None and is_believed:
                election.held = Held(candidate, claims)
                election.waiting.pop(candidate, None)
                return [Elected(name, candidate, claims)]
            return [Lost(name, candidate, "the node does not know of it"), *self._settled(name, election)]
        election.waiting[candidate] = None
        return self._settled(name, election)

    def resigns(self, name: str, candidate: Candidate) -> list[Deed]:
        """It does not stand, and does not lead."""
        election = self._elections.get(name)
        if election is None:
            return []
        election.waiting.pop(candidate, None)
        if election.held is not None and election.held.candidate == candidate:
            return self._free(name, election)
        return self._settled(name, election)

    def unheard(self, name: str, candidate: Candidate) -> list[Deed]:
        """Its conversation has ended: it can't be elected; what it leads it leads."""
        election = self._elections.get(name)
        if election is None:
            return []
        election.waiting.pop(candidate, None)
        return self._settled(name, election)

    def ended(self, incarnation: Incarnation) -> list[Deed]:
        """Nothing of a process is left."""
        deeds: list[Deed] = []
        for name, election in tuple(self._elections.items()):
            held = election.held
            mine = [it for it in election.waiting if it.incarnation == incarnation]
            if held is not None and held.candidate.incarnation == incarnation:
                mine.append(held.candidate)
            for candidate in dict.fromkeys(mine):
                deeds += self.resigns(name, candidate)
        return deeds

    def got(self, name: str, fence: int) -> list[Deed]:
        """The lock that was wanted is ours."""
        election = self._elections.get(name)
        if election is None or election.held is not None or not election.waiting or not election.is_wanted:
            return [Release(name, fence)]
        candidate = next(iter(election.waiting))
        del election.waiting[candidate]
        election.held, election.is_wanted = Held(candidate, fence), False
        return [Elected(name, candidate, fence)]

    def undone(self, name: str) -> list[Deed]:
        """Whoever was just elected could not be told: as if the lock had not been had. The caller sees to another try (`again`)."""
        election = self._elections[name]
        assert election.held is not None
        candidate, fence, _ = election.held
        election.held, election.waiting = None, {candidate: None, **election.waiting}
        return [Release(name, fence)]

    def again(self, name: str) -> list[Deed]:
        """After `undone`."""
        election = self._elections.get(name)
        return [] if election is None else self._settled(name, election)

    def lost(self, name: str, why: str) -> list[Deed]:
        """The lock is not ours any more, or soon won't be."""
        election = self._elections.get(name)
        if election is None or election.held is None or election.held.is_revoked:
            return []
        election.held = election.held._replace(is_revoked=True)
        return [Lost(name, election.held.candidate, why)]

    def rebased(self, why: str) -> list[Deed]:
        """Locks come from somewhere else from now on: nothing that we have counts there, and all is asked for anew."""
        deeds: list[Deed] = []
        for name, election in tuple(self._elections.items()):
            deeds += self.lost(name, why)
            election.is_wanted = False
            deeds += self._settled(name, election)
        return deeds

    def _free(self, name: str, election: _Election) -> list[Deed]:
        held, election.held = election.held, None
        assert held is not None
        released: list[Deed] = [] if held.is_revoked else [Release(name, held.fence)]
        return [*released, *self._settled(name, election)]

    def _settled(self, name: str, election: _Election) -> list[Deed]:
        if election.held is not None:
            return []
        if election.waiting:
            if election.is_wanted:
                return []
            election.is_wanted = True
            return [Want(name)]
        del self._elections[name]
        return [Unwant(name)] if election.is_wanted else []
