"""Which addresses of a fleet tell metrics, and what of each is known beforehand. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agentkit.names import AgentId
from startup.spec.fleet import AgentSpec, AgentTarget, Fleet

Why = Literal["is no agentkit agent", "has no health port"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One agent's health port."""

    id: AgentId
    address: str  #: host:port, as the machines reach each other
    group: str
    klass: str
    version: str = ""  #: of agentkit on its machine; "": not known

    def labels(self) -> dict[str, str]:
        """What stands beside each of its series; nothing that is empty, which for Prometheus is the same as absent."""
        labels = {
            "instance": str(self.id),
            "agent": str(self.id.name),
            "machine": str(self.id.machine),
            "slot": str(self.id.slot),
            "group": self.group,
            "class": self.klass,
            "version": self.version,
        }
        return {name: value for name, value in labels.items() if value}

    def to_wire(self) -> dict[str, Any]:
        """As Prometheus reads it, in files and in static_configs."""
        return {"targets": [self.address], "labels": self.labels()}


def targets(
    fleet: Fleet, *, without: Collection[AgentId] = (), versions: Mapping[str, str] | None = None
) -> list[Target]:
    """Every agent that is meant to run, whether it does or not: one that is down shall be seen to be down.

    `without`: those that nobody wants to run now. `versions`: of agentkit, by machine, as far as is known."""
    hosts = {machine.name: machine.host for machine in fleet.machines}
    return [
        Target(
            id=spec.id,
            address=address(hosts[spec.machine], spec.health_port),
            group=spec.group,
            klass=spec.klass,
            version=(versions or {}).get(spec.machine, ""),
        )
        for spec in fleet.agents
        if spec.health_port and not silent(spec) and _shall_run(spec) and spec.id not in without
    ]


def silent(spec: AgentSpec) -> Why | None:
    """Why nobody knows where it tells metrics; None: it does, on its health port. A program of another make may well
    answer there, but whether it does, and on which path, is nowhere said."""
    if not isinstance(spec.target, AgentTarget):
        return "is no agentkit agent"
    return None if spec.health_port else "has no health port"


def left_out(fleet: Fleet) -> dict[Why, list[AgentId]]:
    """Who runs and is no target, by reason."""
    found: dict[Why, list[AgentId]] = {}
    for spec in fleet.agents:
        why = silent(spec)
        if why and _shall_run(spec):
            found.setdefault(why, []).append(spec.id)
    return found


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _shall_run(spec: AgentSpec) -> bool:
    return spec.enabled and not spec.problem
