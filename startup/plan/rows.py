"""A process as a row: what everybody else sees of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentkit.directory.base import INBOX, INBOX_LOCAL
from agentkit.names import is_loopback
from startup.plan import sleep_status
from startup.plan.phase import Health, Phase
from startup.plan.process import Process
from startup.plan.row import AgentRow, Stamps
from startup.plan.swap import in_words, is_replaced, predecessor_of
from startup.spec.fleet import AgentSpec

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a node knows of the place where its agents run."""

    host: str = LOOPBACK  #: the machine's address for others
    wall_offset_s: float = 0.0  #: seconds since the epoch minus monotonic seconds, here and now
    logs: str = ""  #: folder of the log files
    is_encrypted: bool = False  #: what listens on `host` takes known keys only
    encrypts_loopback: bool = False

    def endpoints(self, spec: AgentSpec) -> Mapping[str, str]:
        """Endpoint name -> address; a program's own port stands under the local name too."""
        if not spec.port:
            return {}
        local = {INBOX_LOCAL: f"tcp://{LOOPBACK}:{spec.port}"}
        return local if is_loopback(self.host) else {**local, INBOX: f"tcp://{self.host}:{spec.port}"}

    def keys(self, spec: AgentSpec, key: str) -> Mapping[str, str]:
        """Endpoint name -> the key that a process serves with there; empty where nothing is encrypted."""
        if not key or spec.sockets == "self":
            return {}
        encrypted = {INBOX} if self.is_encrypted else set()
        return dict.fromkeys(encrypted | ({INBOX_LOCAL} if self.encrypts_loopback else set()), key)

    def health_url(self, spec: AgentSpec) -> str | None:
        return f"http://{self.host}:{spec.health_port}/health" if spec.health_port else None


def row_of(p: Process, place: Place, version: int) -> AgentRow:
    """The row of one own slot."""
    health, reason = p.health, p.reason or p.health_reason
    if p.phase is Phase.READY:
        reason = p.health_reason
        if p.trouble:
            health = Health.DEGRADED if health is Health.OK else health
            reason = "; ".join(filter(None, (p.trouble, p.health_reason)))
    return AgentRow(
        id=p.id,
        group=p.spec.group,
        phase=p.phase,
        health=health,
        reason=reason,
        waiting_for=p.waiting_for,
        because=p.because,
        required=p.spec.required and p.spec.enabled,
        pid=p.pid,
        incarnation=p.incarnation,
        endpoints=place.endpoints(p.spec),
        timeouts_s=p.timeouts_s,
        traits=p.traits,
        keys=place.keys(p.spec, p.key),
        health_url=place.health_url(p.spec),
        stamps=wall(p.stamps, place.wall_offset_s),
        slowest_dependency=p.slowest_dependency,
        restarts=p.restarts,
        last_exit=p.last_exit,
        last_error=p.last_error,
        away=p.away,
        predecessor=predecessor_of(p),
        roll=in_words(p) or ("takes its changed config" if p.offered is not None else ""),
        is_replaced=is_replaced(p) or p.offered is not None,
        roll_error=p.roll_error,
        takes_config=p.takes_config,
        rolled=p.rolled,
        sleep=sleep_status.status(p),
        status_text=p.status_text,
        requests=p.requests,
        errors=p.errors,
        state=p.state,
        log=f"{place.logs}/{p.id.instance}.log",
        version=version,
    )


def wall(stamps: Stamps, offset_s: float) -> Stamps:
    """Monotonic stamps as wall-clock stamps (`offset_s` negative: the other way)."""

    def shift(at_s: float | None) -> float | None:
        return None if at_s is None else at_s + offset_s

    return Stamps(
        wanted_s=shift(stamps.wanted_s),
        unblocked_s=shift(stamps.unblocked_s),
        forked_s=shift(stamps.forked_s),
        importing_s=shift(stamps.importing_s),
        starting_s=shift(stamps.starting_s),
        ready_s=shift(stamps.ready_s),
    )
