"""What a directory is: it turns an agent's name into records of its running instances.

Two backends answer the same questions: the node (`mesh.py`), which learns from other nodes and from Consul, and a fixed table
(`static.py`). An agent asks by name, is told changes from then on, and keeps what it learnt: calls go on while the directory is away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Protocol

from agentkit.errors import AgentUnknown
from agentkit.names import AgentId, Incarnation, matching

#: Endpoint names. `inbox-local` is bound to loopback without encryption, `inbox` to the machine's address with CURVE.
INBOX_LOCAL: Final = "inbox-local"
INBOX: Final = "inbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """One running instance as others see it."""

    id: AgentId
    incarnation: Incarnation
    phase: str  #: a value of startup.plan.process.Phase; `ready` takes calls
    endpoints: Mapping[str, str] = field(default_factory=dict)  #: endpoint name -> "tcp://host:port"
    timeouts_s: Mapping[str, float] = field(
        default_factory=dict
    )  #: methods whose default deadline is not the usual one
    #: what else callers should know of methods: method -> {"idempotent": True, "balance": "hash", "key": "user_id"}
    traits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(
        default_factory=dict
    )  #: endpoint name -> fingerprint of the key that it serves with; left out: no encryption
    predecessor: Incarnation = Incarnation(0)  #: one that this one took over from and that still answers what it runs
    health: str = "ok"  #: ok | degraded (gets less) | failing (gets calls only where there is nobody better)
    health_url: str | None = None

    def to_wire(self) -> dict[str, Any]:
        wire = {name: getattr(self, name) for name in _FIELDS}  # not asdict: it copies deeply, and nodes tell many
        wire["id"] = str(self.id)
        return wire

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> AgentRecord:
        """Fields that only a newer node tells are left out; those that an older one does not tell have their defaults."""
        known = {name: value for name, value in data.items() if name in _FIELDS}
        return cls(**{**known, "id": AgentId.parse(data["id"])})


_FIELDS: Final = tuple(found.name for found in fields(AgentRecord))


class Directory(Protocol):
    """Where names are looked up. All methods belong to the event loop."""

    #: Grows whenever an answer of `cached` may have changed, so that callers need not ask for each call.
    version: int

    async def lookup(self, name: str) -> tuple[AgentRecord, ...]:
        """The instances that `name` means, ready or not; the first lookup of a name subscribes to it.

        Ends only by answer, error or cancellation. Raises AgentUnknown: nobody of that name, or it is ambiguous
        (with `directory_stale` when the directory is away and the name was never learnt)."""
        ...

    def cached(self, name: str) -> tuple[AgentRecord, ...]:
        """What is known of `name` already; AgentUnknown when that is nothing. Does not wait."""
        ...

    async def names(self) -> tuple[AgentId, ...]:
        """Every agent that the directory knows now."""
        ...

    async def close(self) -> None:
        """Ends subscriptions; lookups of what was learnt go on working."""
        ...


def unambiguous(
    name: str, records: tuple[AgentRecord, ...], *, here: str | None, stale: bool = False
) -> tuple[AgentRecord, ...]:
    """The records that `name` means by the rule of `names.matching`; AgentUnknown if none, or on several machines."""
    ids = set(matching(name, (record.id for record in records), here=here))
    if not ids:
        away = "; the directory can't be asked now" if stale else ""
        raise AgentUnknown(f"no agent called {name!r}{away}", details={"name": name, "directory_stale": stale})
    machines = sorted({id.machine for id in ids})
    if len(machines) > 1:
        choices = ", ".join(f"{machine}/{name}" for machine in machines)
        raise AgentUnknown(f"{name!r} is ambiguous: say {choices}", details={"name": name, "machines": machines})
    return tuple(record for record in records if record.id in ids)
