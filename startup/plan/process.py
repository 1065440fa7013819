"""One slot's process as a value: what is known of it, and the one door to another phase. Without I/O.

    pending -> waiting <-> skipped            wanted; blocked; a cause makes it hopeless, and is gone again
    waiting -> forked -> importing -> starting -> ready          unblocked, then what the process says of itself
    any alive -> stopping -> stopped | waiting | (failure)       told to go, or going by itself
    failure -> waiting (at once) | backoff -> waiting | failed -> waiting (slowly)
    a task's exit 0 -> completed; an agent's EXIT_ASLEEP -> hibernated -> waiting (sleep_transitions.py)

Times are monotonic seconds. What changes it: transitions.py until its process has ended, ending.py from there on, sleep_transitions.py
while it sleeps, swap.py while it has two processes. When it is wanted or unblocked is decided by reconcile.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agentkit.names import AgentId, Incarnation
from startup.plan.actions import (
    Action,
)
from startup.plan.phase import Health, Phase
from startup.plan.row import Stamps
from startup.plan.sleep_record import Sleep
from startup.spec.fleet import AgentSpec

if TYPE_CHECKING:
    from startup.plan.swap import Swap


class Leaving(StrEnum):
    """Why a process is on its way out, or nothing."""

    NO = ""
    STOP = "stopped"  #: it is not wanted any more
    RESTART = "restarted"  #: it shall come again: asked by an operator, or its spec has changed
    START_TIMEOUT = "start timeout"
    WATCHDOG = "watchdog"
    QUARANTINE = "quarantined"  #: a rule of `on_error` took it out of service
    LIMIT = "over its limit"
    SILENT = "silent"  #: a program that does not answer its probe any more
    ITSELF = "left by itself"  #: it said STOPPING=1 unasked
    SLEEP = "falling asleep"  #: it asked, and may; still ready for everybody else


#: We asked, so its exit is no failure.
ASKED: Final = frozenset({Leaving.STOP, Leaving.RESTART, Leaving.QUARANTINE})
#: How the reason of a quarantined process begins.
QUARANTINED: Final = "quarantined: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Everything known of one slot on this machine. `phase`, `health`, `because`, `reason` read like a row's."""

    spec: AgentSpec
    digest: str = ""  #: of the spec that an adopted process was started with; empty: that of `spec`
    phase: Phase = Phase.PENDING
    since_s: float = 0.0  #: when this phase began
    deadline_s: float | None = None  #: when `due` has something to say; what, depends on the phase
    leaving: Leaving = Leaving.NO
    pid: int | None = None
    incarnation: Incarnation = Incarnation(0)
    key: str = ""  #: fingerprint of the key that it serves with; "": no encryption
    health: Health = Health.OK
    health_reason: str = ""
    trouble: str = ""  #: ready, but a required dependency is gone: shown as degraded
    reason: str = ""
    waiting_for: tuple[str, ...] = ()
    because: str = ""
    slowest_dependency: str = ""
    stamps: Stamps = field(default_factory=Stamps)  #: monotonic here; rows hold wall-clock time
    fed_s: float | None = None  #: the last WATCHDOG=1; None: it never fed one, so none is expected
    failures: tuple[float, ...] = ()  #: when it failed and was started again, within the window
    streak: int = 0  #: failures in a row, without a stable period between them
    restarts: int = 0  #: by the budget, since the slot is wanted
    last_exit: str = ""
    last_error: str = ""
    away: str = ""  #: it was up, is not, and shall come again: why
    excuse: str = ""  #: what it, or we, said of its failing, before it was gone
    status_text: str = ""
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    traits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    requests: int = 0
    errors: int = 0
    state: Mapping[str, Any] = field(default_factory=dict)  #: how what it remembers is kept, as it told last
    swap: Swap | None = None  #: another process of this slot, and what it is there for
    light_sleep: Mapping[str, Any] = field(default_factory=dict)  #: sleep_status.read_light: what it says of it
    roll_error: str = ""  #: why its last successor did not become ready, and it serves on
    rolled: int = 0  #: number of the revision whose rollout it has come through; below zero: in which it failed
    takes_config: bool = False  #: its class has `on_config`
    base: str = ""  #: as `digest`, without the config
    offered: AgentSpec | None = None  #: whose config it was told, and has not answered for yet
    config_refused: str = ""  #: digest of the spec whose config it did not take
    sleep: Sleep | None = None  #: of its sleeps, once it slept
    refused: str = ""  #: digest of the spec that no successor could be had for, in this revision

    @property
    def id(self) -> AgentId:
        return self.spec.id

    @property
    def is_quarantined(self) -> bool:
        """Taken out of service by a rule, or on its way there."""
        return self.leaving is Leaving.QUARANTINE or (
            self.phase is Phase.FAILED and self.deadline_s is None and self.reason.startswith(QUARANTINED)
        )


Outcome: TypeAlias = tuple[Process, list[Action]]

#: What is no longer true once a slot is looked at anew.
BLANK: Final[Mapping[str, Any]] = {"reason": "", "because": "", "waiting_for": ()}
#: What only the process itself can say, so a new one has not said it yet.
UNTOLD: Final[Mapping[str, Any]] = {
    "pid": None, "health": Health.OK, "health_reason": "", "status_text": "", "fed_s": None, "light_sleep": {},
    "excuse": "", "digest": "", "roll_error": "", "refused": "", "takes_config": False, "base": "", "offered": None, "config_refused": "",
}  # fmt: skip


def new(spec: AgentSpec, now_s: float) -> Process:
    """A slot that was just heard of."""
    return Process(spec=spec, since_s=now_s)


def runs(p: Process, spec: AgentSpec) -> bool:
    """Whether its process is what `spec` asks for. Compares values first: a digest costs 0.1 ms, and 1,000 agents
    have one each."""
    if not p.digest and (spec is p.spec or spec == p.spec):
        return True
    return (p.digest or p.spec.digest()) == spec.digest()


def to(p: Process, phase: Phase, now_s: float, **facts: Any) -> Process:
    """The one door to another phase: what belonged to the last one (deadline, reason to leave, trouble) does not
    come along."""
    facts = {"deadline_s": None, "leaving": Leaving.NO, "trouble": "", **facts}
    return replace(p, phase=phase, since_s=now_s, **facts)
