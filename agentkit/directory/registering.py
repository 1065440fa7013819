"""What to tell Consul: wanted against registered, and nothing that it knows already. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from agentkit.directory.entries import LAYOUT, Entry, Status, service_name
from agentkit.errors import ConfigError
from agentkit.names import AgentId


class Wanted(NamedTuple):
    """An agent as it shall stand in Consul."""

    entry: Entry
    status: Status


class Standing(NamedTuple):
    """An agent as it stands there."""

    digest: str
    status: Status


@dataclass(frozen=True, slots=True)
class Register:
    id: AgentId
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Deregister:
    id: AgentId


@dataclass(frozen=True, slots=True)
class Feed:
    """Reset its TTL, and say how it is."""

    id: AgentId
    status: Status


Step: TypeAlias = Register | Deregister | Feed


class Found(NamedTuple):
    """What a Consul agent has of one machine."""

    standing: dict[AgentId, Standing]
    taken: frozenset[str]  #: service ids that are ours by name and somebody else's by what stands there


def found_of(services: Mapping[str, Mapping[str, Any]], cluster: str, machine: str) -> Found:
    """Out of /v1/agent/services. Statuses are not told there: what is found counts as passing, and the next feed sets it right."""
    standing: dict[AgentId, Standing] = {}
    taken = set()
    for id, service in services.items():
        try:
            agent = AgentId.parse(id)
        except ConfigError:
            continue
        if agent.machine != machine:
            continue
        meta = service.get("Meta") or {}
        if service.get("Service") == service_name(cluster) and meta.get("agentkit") == LAYOUT:
            standing[agent] = Standing(str(meta.get("digest", "")), "passing")
        else:
            taken.add(id)
    return Found(standing, frozenset(taken))


def steps(
    wanted: Mapping[AgentId, Wanted],
    standing: Mapping[AgentId, Standing],
    *,
    taken: frozenset[str] = frozenset(),
    spared: frozenset[AgentId] = frozenset(),
    feed: bool = False,
) -> list[Step]:
    """What is to be done, who leaves first: a call that goes nowhere is worse than one that comes a moment late.

    `taken`: ids that are somebody else's, left alone. `spared`: who is not deregistered, because nobody has said yet
    whether it runs. `feed`: all TTLs, in one pass; else only those whose status changed."""
    leaving: list[Step] = [Deregister(id) for id in sorted(standing.keys() - wanted.keys() - spared)]
    coming: list[Step] = []
    fed: list[Step] = []
    for id, want in sorted(wanted.items(), key=lambda pair: pair[0]):
        known = standing.get(id)
        if known is None or known.digest != want.entry.digest:
            if str(id) not in taken:
                coming.append(Register(id, want))
                if known is not None and known.status != want.status:
                    coming.append(Feed(id, want.status))  # Consul keeps the status of an entry that is registered anew
        elif feed or known.status != want.status:
            fed.append(Feed(id, want.status))
    return leaving + coming + fed


def done(standing: Mapping[AgentId, Standing], step: Step) -> dict[AgentId, Standing]:
    """What stands after `step` was done."""
    after = dict(standing)
    match step:
        case Register(id, want):
            status = after[id].status if id in after else want.status
            after[id] = Standing(want.entry.digest, status)
        case Deregister(id):
            after.pop(id, None)
        case Feed(id, status):
            if id in after:
                after[id] = after[id]._replace(status=status)
    return after
