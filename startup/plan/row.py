"""One agent as `status` shows it: what nodes tell each other, the CLI and `watch`. Shared by node/, view/ and cli/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from agentkit.directory.base import AgentRecord
from agentkit.names import AgentId, Incarnation
from startup.plan.phase import Health, Phase

#: Clocks of two machines that differ by less are taken as equal, in seconds: what is measured is true to half of what an answer takes.
CLOCKS_AGREE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamps:
    """When the last start reached each step: seconds since the epoch on its own machine; None: not yet."""

    wanted_s: float | None = None  #: the command that asked for it arrived
    unblocked_s: float | None = None  #: its dependencies were ready
    forked_s: float | None = None
    importing_s: float | None = None
    starting_s: float | None = None  #: imported; __init__ and on_start begin
    ready_s: float | None = None

    def shifted(self, by_s: float) -> Stamps:
        """The same moments on a clock that is `by_s` ahead."""
        moments = {name: getattr(self, name) for name in _STAMPS}
        return Stamps(**{name: None if moment is None else moment + by_s for name, moment in moments.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRow:
    """The whole truth about one slot, as its own node knows it."""

    id: AgentId
    group: str = ""
    phase: Phase = Phase.PENDING
    health: Health = Health.OK
    reason: str = ""  #: why it waits, failed, is skipped or degraded
    waiting_for: tuple[str, ...] = ()  #: names as written in the spec
    because: str = ""  #: skipped: the agent at the root of it
    required: bool = True
    pid: int | None = None
    incarnation: Incarnation = Incarnation(0)
    endpoints: Mapping[str, str] = field(default_factory=dict)
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    traits: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  #: of methods, for callers: AgentRecord.traits
    keys: Mapping[str, str] = field(default_factory=dict)  #: of encrypted endpoints: AgentRecord.keys
    health_url: str | None = None
    stamps: Stamps = field(default_factory=Stamps)
    slowest_dependency: str = ""  #: the id whose readiness unblocked it: the critical path is read off these
    restarts: int = 0
    last_exit: str = ""  #: "exit 1", "signal SIGKILL", "watchdog", ... with its time in words
    last_error: str = ""
    away: str = ""  #: it was up, is not, and shall come again: why
    predecessor: Incarnation = Incarnation(0)  #: of the process that drains beside this one
    roll: str = ""  #: two processes are there, or soon will be: what the other one does
    is_replaced: bool = False  #: another process shall take its place and does not serve yet
    roll_error: str = ""  #: the last restart or change came to nothing, and why; the process from before it serves on
    takes_config: bool = False  #: its class has `on_config`: another config reaches it without a restart
    rolled: int = 0  #: number of the revision whose rollout it has come through; below zero: in which it failed
    sleep: Mapping[str, Any] = field(default_factory=dict)  #: sleep_status.status
    status_text: str = ""  #: the agent's own STATUS=
    requests: int = 0
    errors: int = 0
    state: Mapping[str, Any] = field(
        default_factory=dict
    )  #: how what it remembers is kept (agentkit.agent.state_keeper), if anything
    memory_mb: float | None = None  #: PSS; filled in by `status`, not replicated
    log: str = ""  #: path on its machine
    version: int = 0  #: grows with every change of the row on its own node; replication keeps the highest

    def record(self) -> AgentRecord:
        """What the directory tells callers."""
        return AgentRecord(
            id=self.id,
            incarnation=self.incarnation,
            phase="hibernated" if self.sleep.get("is_waking") else self.phase.value,
            endpoints=self.endpoints,
            timeouts_s=self.timeouts_s,
            traits=self.traits,
            predecessor=self.predecessor,
            keys=self.keys,
            health=self.health.value,
            health_url=self.health_url,
        )

    def to_wire(self) -> dict[str, Any]:
        # not asdict: it copies deeply and takes 100 us against 6, and a starting fleet tells a thousand rows
        wire = {name: getattr(self, name) for name in _FIELDS}
        wire["stamps"] = {name: getattr(self.stamps, name) for name in _STAMPS}
        wire["id"], wire["phase"], wire["health"] = str(self.id), self.phase.value, self.health.value
        return wire

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> AgentRow:
        """A newer node's row may have more in it: while machines are upgraded one after another, both kinds meet."""
        return cls(
            **{
                **{name: data[name] for name in _FIELDS if name in data},
                "id": AgentId.parse(data["id"]),
                "phase": Phase(data["phase"]),
                "health": Health(data["health"]),
                "waiting_for": tuple(data["waiting_for"]),
                "stamps": Stamps(**{name: at_s for name, at_s in data["stamps"].items() if name in _STAMPS}),
            }
        )


_FIELDS: Final = tuple(found.name for found in fields(AgentRow))
_STAMPS: Final = tuple(found.name for found in fields(Stamps))
