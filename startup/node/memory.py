"""A process as facts for the state directory, and back: how a node knows what its predecessor's processes were doing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Final, TypeAlias

from agentkit.names import AgentId, Incarnation
from startup.plan.phase import ALIVE, Health, Phase
from startup.plan.process import Leaving, Process
from startup.plan.row import Stamps
from startup.plan.sleep_record import Sleep
from startup.plan.swap import Role
from startup.spec.fleet import AgentSpec

_PLAIN: Final = (
    "since_s", "pid", "health_reason", "reason", "slowest_dependency", "fed_s", "streak", "restarts", "last_exit", "last_error",
    "status_text", "requests", "errors", "roll_error",
)  # fmt: skip

_STAMPS: Final = tuple(found.name for found in fields(Stamps))
_SLEEP: Final = tuple(found.name for found in fields(Sleep))


#: When its process began (procinfo.start_ticks); None: there is none, or it is not known.
Began: TypeAlias = Callable[[Process], int | None]


def facts_of(p: Process, digest: str, began: Began = lambda _: None, base: str = "") -> dict[str, Any]:
    """What is worth remembering; `digest` is that of the spec it runs with, `base` the one without its config."""
    facts = {name: getattr(p, name) for name in _PLAIN}
    return facts | {
        "phase": p.phase.value,
        "health": p.health.value,
        "incarnation": int(p.incarnation),
        "digest": digest,
        "takes_config": p.takes_config,
        "base": base,
        "stamps": {name: getattr(p.stamps, name) for name in _STAMPS},
        "failures": list(p.failures),
        "timeouts_s": dict(p.timeouts_s),
        "traits": {name: dict(traits) for name, traits in p.traits.items()},
        "leaving": p.leaving.value,
        "beside": _beside(p, began),
        "began": began(p),
        "key": p.key,
        "state": dict(p.state),
        "away": p.away,
        "sleep": None if p.sleep is None else {name: getattr(p.sleep, name) for name in _SLEEP},
        "deadline_s": p.deadline_s if p.phase in (Phase.BACKOFF, Phase.FAILED) else None,
    }


def _beside(p: Process, began: Began) -> dict[str, Any] | None:
    """The other process of the slot, if it has one yet: enough to find and to end it."""
    if p.swap is None:
        return None
    beside = p.swap.beside
    return {
        "role": p.swap.role.value,
        "pid": beside.pid,
        "incarnation": int(beside.incarnation),
        "key": beside.key,
        "began": began(beside),
    }


def beside_of(facts: Mapping[str, Any], p: Process) -> tuple[Process, Role] | None:
    """The other process that `facts` tell of, and what it was there for. KeyError, ValueError, TypeError: they tell nonsense."""
    found = facts.get("beside")
    if found is None:
        return None
    pid = None if found["pid"] is None else int(found["pid"])
    incarnation = Incarnation(found["incarnation"])
    beside = Process(spec=p.spec, pid=pid, incarnation=incarnation, key=str(found.get("key", "")), phase=Phase.READY)
    return beside, Role(found["role"])


def beginnings(facts: Mapping[str, Any]) -> dict[int, int]:
    """Incarnation -> when its process began, of the processes that `facts` tell of."""
    told = (facts, facts.get("beside") or {})
    return {int(it["incarnation"]): int(it["began"]) for it in told if it.get("began") is not None}


class Remembering:
    """Facts of processes, with the digest of each spec and the beginning of each process looked up once."""

    def __init__(self, began: Callable[[int], int | None] = lambda _: None) -> None:
        self._digests: dict[AgentId, tuple[AgentSpec, str]] = {}
        self._began = began
        self._beginnings: dict[AgentId, dict[int, int | None]] = {}

    def of(self, processes: Iterable[Process]) -> dict[str, dict[str, Any]]:
        """By id, as text."""
        return {str(p.id): self._of(p) for p in processes}

    def _of(self, p: Process) -> dict[str, Any]:
        known = self._digests.get(p.id)
        before = self._beginnings.get(p.id, {})
        now: dict[int, int | None] = {}

        def began(p: Process) -> int | None:
            if p.pid is None:
                return None
            known = p.incarnation in before
            found = now[p.incarnation] = before[p.incarnation] if known else self._began(p.pid)
            return found

        if known is None or known[0] is not p.spec:
            known = self._digests[p.id] = (p.spec, p.spec.digest())
        base = (p.base or p.spec.base_digest()) if p.takes_config else ""
        facts = facts_of(p, p.digest or known[1], began, base)
        self._beginnings[p.id] = now
        return facts


def process_of(facts: Mapping[str, Any], spec: AgentSpec) -> Process:
    """The process that `facts` tell of, of a slot that `spec` describes now. KeyError, ValueError, TypeError: they tell of none."""
    return Process(
        spec=spec,
        digest="" if facts["digest"] == spec.digest() else facts["digest"],
        takes_config=bool(facts.get("takes_config")),
        base="" if facts["digest"] == spec.digest() else facts.get("base", ""),
        phase=Phase(facts["phase"]),
        health=Health(facts["health"]),
        incarnation=Incarnation(facts["incarnation"]),
        leaving=Leaving(facts.get("leaving", "")),
        stamps=Stamps(**facts["stamps"]),
        failures=tuple(facts["failures"]),
        timeouts_s=facts["timeouts_s"],
        traits=facts.get("traits", {}),
        key=facts.get("key", ""),
        state=facts.get("state", {}),
        away=facts.get("away", ""),
        sleep=None
        if facts.get("sleep") is None
        else Sleep(**{**facts["sleep"], "patterns": tuple(facts["sleep"].get("patterns", ()))}),
        deadline_s=facts["deadline_s"],
        **{name: facts[name] for name in _PLAIN},
    )


def after_boot(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is left to remember when the machine was booted since: that it sleeps. Monotonic times mean nothing any more."""
    if facts.get("phase") != Phase.HIBERNATED or not facts.get("sleep"):
        return None
    sleep = {**facts["sleep"], "due_s": None, "woken_s": None, "took_s": None}
    return {
        **facts,
        "sleep": sleep,
        "since_s": 0.0,
        "fed_s": None,
        "failures": [],
        "streak": 0,
        "stamps": {},
        "beside": None,
    }


def without_process(p: Process) -> Process:
    """A remembered slot that has no process: what it was doing is over, what it may spend is not."""
    if p.phase in ALIVE or p.phase not in (Phase.BACKOFF, Phase.FAILED, Phase.COMPLETED, Phase.STOPPED):
        return replace(p, phase=Phase.PENDING, pid=None, deadline_s=None, leaving=Leaving.NO)
    return replace(p, pid=None, leaving=Leaving.NO)
