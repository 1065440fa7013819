"""A revision: the desired state of the whole cluster, as an operator's command left it. Every node stores all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

import msgpack

from agentkit.names import AgentId
from startup.spec.fleet import Fleet

#: Nodes and CLI that read and write revisions of another number do not understand each other.
CONTROL_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How the nodes come to a revision that `apply` made (plan/rollout.py)."""

    base: int  #: number of the revision before it
    base_digest: str
    max_unavailable: int  #: so many agents are being replaced at a time, in the whole cluster
    on_failure: Literal["roll back", "halt", "go on"] = "roll back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """Only operators' commands make a new one, by compare-and-set on each node in name order."""

    number: int
    author: str  #: user@host
    time_s: float  #: seconds since the epoch, on the author's machine
    fleet: Fleet
    stopped: frozenset[AgentId] = frozenset()  #: shall not run; everything else that is enabled shall
    unstarted: Mapping[AgentId, str] = field(
        default_factory=dict
    )  #: of `stopped`: left out by this command, never stopped
    scaled: Mapping[str, int] = field(default_factory=dict)  #: machine/name -> slots, where an operator said how many
    down: bool = False  #: everything stops, then the nodes exit
    rollout: Rollout | None = None  #: None: everything that changes is replaced at once
    note: str = ""  #: why it was made, when that was not its author's own wish
    control_version: int = CONTROL_VERSION

    def to_wire(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "author": self.author,
            "time_s": self.time_s,
            "control_version": self.control_version,
            "fleet": self.fleet.to_wire(),
            "stopped": sorted(str(id) for id in self.stopped),
            "unstarted": {str(id): command for id, command in self.unstarted.items()},
            "down": self.down,
            "scaled": dict(self.scaled),
            "rollout": asdict(self.rollout) if self.rollout else None,
            "note": self.note,
        }

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Revision:
        """ValueError when `data` is no revision that this version understands."""
        from startup.spec.wire import fleet_from_wire  # pydantic: only nodes read revisions, the CLI only writes them

        return cls(
            number=int(data["number"]),
            author=str(data["author"]),
            time_s=float(data["time_s"]),
            control_version=int(data["control_version"]),
            fleet=fleet_from_wire(data["fleet"]),
            stopped=frozenset(AgentId.parse(text) for text in data["stopped"]),
            unstarted={AgentId.parse(text): str(command) for text, command in data.get("unstarted", {}).items()},
            down=bool(data["down"]),
            scaled={str(agent): int(number) for agent, number in data.get("scaled", {}).items()},
            rollout=Rollout(**data["rollout"]) if data.get("rollout") else None,
            note=str(data.get("note", "")),
        )

    def digest(self) -> str:
        """Equal for revisions that want the same, whoever wrote them and when."""
        stopped = sorted(str(id) for id in self.stopped)
        facts = (self.fleet.digest(), stopped, sorted(self.scaled.items()), self.down, self.control_version)
        return hashlib.blake2b(msgpack.packb(facts), digest_size=8).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What `hello` and `status` tell of it."""
        return {
            "number": self.number,
            "digest": self.digest(),
            "author": self.author,
            "time_s": self.time_s,
            "down": self.down,
            "stopped": sorted(str(id) for id in self.stopped),
            "note": self.note,
        }

    def numbered(self, number: int) -> Revision:
        return replace(self, number=number)

    def starting(self, ids: Collection[AgentId]) -> Revision:
        """The same wish with these running."""
        return self._with_stopped(self.stopped.difference(ids), ids)

    def stopping(self, ids: Collection[AgentId]) -> Revision:
        """The same wish with these stopped, by an operator."""
        return self._with_stopped(self.stopped.union(ids), ids)

    def _with_stopped(self, stopped: frozenset[AgentId], named: Collection[AgentId]) -> Revision:
        unstarted = {id: command for id, command in self.unstarted.items() if id not in named}
        return replace(self, stopped=stopped, unstarted=unstarted, note="")
