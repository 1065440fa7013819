"""What keeps an agent from running although this node's revision wants it: what other machines know. Pure.

Nodes never take work from each other's revisions: only an operator's command does that. But a newer revision can take away. A node that
was off, or cut off, while its agents were moved must not run them a second time:

- **held**: a node that starts with a stored revision starts nothing before the other machines have said which revision they have,
  or some time has passed in which they did not. What runs already goes on.
- **limited**: of a newer revision (greater number; of equal numbers the greater digest) only this counts: which of this machine's agents it
  wants. The others stop here, until an operator's command brings this machine up to date.
- **moved**: an agent that this revision has moved here from another machine starts when that machine says that nothing of it runs there
  any more. A machine that does not answer says nothing; `--force-move` does without its word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from agentkit.names import AgentId
from startup.plan.desired import Desired
from startup.plan.phase import Phase

#: (number, digest) of a revision: what comes later in this order takes away from what comes before.
Rank = tuple[int, str]

#: Nothing of a moved agent runs where it was, nor will.
_GONE: Final = frozenset({Phase.STOPPED, Phase.COMPLETED})


@dataclass(frozen=True, slots=True)
class Limit:
    """What a newer revision leaves to this machine."""

    rank: Rank
    machine: str  #: who has it
    given: frozenset[AgentId]

    @property
    def why_not(self) -> str:
        return f"revision {self.rank[0]} of {self.machine} does not want it here; `agentkit up` brings this machine up to date"


class Blocked(NamedTuple):
    """As `blockers.Blockers` says it."""

    waiting_for: tuple[str, ...]
    because: str = ""
    reason: str = ""


@dataclass(slots=True)
class Fencing:
    """Of one node. Changed by node/fence.py, asked by the reconciler."""

    held: str = ""  #: what starts wait for; "": nothing
    limit: Limit | None = None
    moves: dict[AgentId, AgentId] = field(default_factory=dict)  #: own agents -> where each was before

    def why_not(self, id: AgentId) -> str:
        """Why this machine may not run it; "" when it may."""
        return "" if self.limit is None or id in self.limit.given else self.limit.why_not

    def blocked(self, id: AgentId, is_away: Callable[[AgentId], bool]) -> Blocked | None:
        """What keeps it from starting beside its dependencies. `is_away`: the machine of such an agent says nothing of it."""
        if self.held:
            return Blocked((self.held,))
        before = self.moves.get(id)
        if before is None:
            return None
        if not is_away(before):
            return Blocked((f"{before} to end there",))
        reason = f"{before} may still run, {before.machine} does not answer; `agentkit up --force-move` starts it here all the same"
        return Blocked((), str(before), reason)

    def told(self, id: AgentId, phase: Phase) -> list[AgentId]:
        """The agents that may start now that another machine says this of one of its own."""
        if not self.moves or phase not in _GONE:
            return []
        freed = [new for new, old in self.moves.items() if old == id]
        for new in freed:
            del self.moves[new]
        return freed

    def revised(self, rank: Rank) -> None:
        """This machine has another revision now."""
        if self.limit is not None and self.limit.rank <= rank:
            self.limit = None

    def takes(self, limit: Limit, own: Rank) -> bool:
        """Take what a peer's revision leaves to this machine; whether that changes anything."""
        if limit.rank <= own or (self.limit is not None and limit.rank <= self.limit.rank):
            return False
        self.limit = limit
        return True

    def to_wire(self) -> dict[str, Any]:
        limit = self.limit
        return {
            "limit": limit and {"rank": limit.rank, "machine": limit.machine, "given": sorted(map(str, limit.given))},
            "moves": {str(new): str(old) for new, old in self.moves.items()},
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Fencing:
        limit = data["limit"]
        return cls(
            limit=limit and limit_from_wire(limit),
            moves={AgentId.parse(new): AgentId.parse(old) for new, old in data["moves"].items()},
        )


def limit_from_wire(data: Mapping[str, Any]) -> Limit:
    """ValueError, KeyError or TypeError when it is none."""
    number, digest = data["rank"]
    given = frozenset(AgentId.parse(str(id)) for id in data["given"])
    return Limit((int(number), str(digest)), str(data["machine"]), given)


def moves_between(before: Desired, after: Desired, machine: str) -> dict[AgentId, AgentId]:
    """Agents of `machine` that `after` has and another machine had `before`: new id -> old."""
    gone = {(id.name, id.slot): id for id in before.specs if id not in after.specs and before.wants(id)}
    return {
        id: old
        for id in after.specs
        if id.machine == machine and id not in before.specs
        if (old := gone.get((id.name, id.slot))) is not None and old.machine != machine
    }


def claims(desired: Desired, machine: str) -> list[str]:
    """The agents that a revision wants on `machine`."""
    return sorted(str(id) for id in desired.specs if id.machine == machine and desired.wants(id))
