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
class _Contest:
    waiting: dict[Candidate, None] = field(default_factory=dict)  #: in the order in which they came
    held: Held | None = None
    is_wanted: bool = False


class Contests:
    """All names of one node."""

    def __init__(self) -> None:
        self._contests: dict[str, _Contest] = {}

    @property
    def held(self) -> dict[str, Held]:
        return {name: contest.held for name, contest in self._contests.items() if contest.held is not None}

    def resume(self, name: str, candidate: Candidate, fence: int) -> None:
        """A leader of an earlier node that is still there. Its lock is still ours."""
        self._contests.setdefault(name, _Contest()).held = Held(candidate, fence)

    def stands(self, name: str, candidate: Candidate, claims: int = 0, *, is_believed: bool = False) -> list[Deed]:
        """A candidate asks. `claims`: the fence of the term that it is in, since an earlier node, or an earlier conversation; 0: it is in
        none, whatever we think. `is_believed`: a claim counts even when we know nothing of it, unless another was elected."""
        contest = self._contests.setdefault(name, _Contest())
        held = contest.held
        if held is not None and held.candidate == candidate:
            if claims == held.fence and not held.is_revoked:
                return [Elected(name, candidate, claims)]
            if claims:
                return [Lost(name, candidate, "its lock was lost")]  # it resigns, then stands again
            contest.waiting[candidate] = None
            return self._free(name, contest)
        if claims:
            if held is None and is_believed:
                contest.held = Held(candidate, claims)
                contest.waiting.pop(candidate, None)
                return [Elected(name, candidate, claims)]
            return [Lost(name, candidate, "the node does not know of it"), *self._settled(name, contest)]
        contest.waiting[candidate] = None
        return self._settled(name, contest)

    def resigns(self, name: str, candidate: Candidate) -> list[Deed]:
        """It does not stand, and does not lead."""
        contest = self._contests.get(name)
        if contest is None:
            return []
        contest.waiting.pop(candidate, None)
        if contest.held is not None and contest.held.candidate == candidate:
            return self._free(name, contest)
        return self._settled(name, contest)

    def unheard(self, name: str, candidate: Candidate) -> list[Deed]:
        """Its conversation has ended: it can't be elected; what it leads it leads."""
        contest = self._contests.get(name)
        if contest is None:
            return []
        contest.waiting.pop(candidate, None)
        return self._settled(name, contest)

    def ended(self, incarnation: Incarnation) -> list[Deed]:
        """Nothing of a process is left."""
        deeds: list[Deed] = []
        for name, contest in tuple(self._contests.items()):
            held = contest.held
            mine = [it for it in contest.waiting if it.incarnation == incarnation]
            if held is not None and held.candidate.incarnation == incarnation:
                mine.append(held.candidate)
            for candidate in dict.fromkeys(mine):
                deeds += self.resigns(name, candidate)
        return deeds

    def got(self, name: str, fence: int) -> list[Deed]:
        """The lock that was wanted is ours."""
        contest = self._contests.get(name)
        if contest is None or contest.held is not None or not contest.waiting or not contest.is_wanted:
            return [Release(name, fence)]
        candidate = next(iter(contest.waiting))
        del contest.waiting[candidate]
        contest.held, contest.is_wanted = Held(candidate, fence), False
        return [Elected(name, candidate, fence)]

    def undone(self, name: str) -> list[Deed]:
        """Whoever was just elected could not be told: as if the lock had not been had. The caller sees to another try (`again`)."""
        contest = self._contests[name]
        assert contest.held is not None
        candidate, fence, _ = contest.held
        contest.held, contest.waiting = None, {candidate: None, **contest.waiting}
        return [Release(name, fence)]

    def again(self, name: str) -> list[Deed]:
        """After `undone`."""
        contest = self._contests.get(name)
        return [] if contest is None else self._settled(name, contest)

    def lost(self, name: str, why: str) -> list[Deed]:
        """The lock is not ours any more, or soon won't be."""
        contest = self._contests.get(name)
        if contest is None or contest.held is None or contest.held.is_revoked:
            return []
        contest.held = contest.held._replace(is_revoked=True)
        return [Lost(name, contest.held.candidate, why)]

    def rebased(self, why: str) -> list[Deed]:
        """Locks come from somewhere else from now on: nothing that we have counts there, and all is asked for anew."""
        deeds: list[Deed] = []
        for name, contest in tuple(self._contests.items()):
            deeds += self.lost(name, why)
            contest.is_wanted = False
            deeds += self._settled(name, contest)
        return deeds

    def _free(self, name: str, contest: _Contest) -> list[Deed]:
        held, contest.held = contest.held, None
        assert held is not None
        released: list[Deed] = [] if held.is_revoked else [Release(name, held.fence)]
        return [*released, *self._settled(name, contest)]

    def _settled(self, name: str, contest: _Contest) -> list[Deed]:
        if contest.held is not None:
            return []
        if contest.waiting:
            if contest.is_wanted:
                return []
            contest.is_wanted = True
            return [Want(name)]
        del self._contests[name]
        return [Unwant(name)] if contest.is_wanted else []
