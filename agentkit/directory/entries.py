"""What stands in Consul of one agent: made of what its node knows, and read again from what Consul tells. Pure.

One service for a cluster, `agentkit-<cluster>`; one entry per agent, `machine/name#slot`. Whatever does not look like this was put
there by somebody else, and is not taken for an agent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, Literal

from agentkit.directory.base import INBOX, INBOX_LOCAL
from agentkit.errors import ConfigError
from agentkit.names import AgentId, Incarnation

#: Consul refuses longer values of a service's meta, and more than 64 of them.
MAX_META_VALUE: Final = 512
#: What callers should know of methods (deadlines, which may be repeated) is told in so many pieces at most, else not at all:
#: callers then use their defaults, which are the careful ones.
MAX_PIECES: Final = 16
#: Version of this layout; an entry of another one is not read.
LAYOUT: Final = "1"
#: Least that Consul takes; it looks every 30 s, so a crashed machine's entries are gone within 2 minutes.
DEREGISTER_AFTER: Final = "1m"

Status = Literal["passing", "warning"]


@dataclass(frozen=True)  # not slots: digest is kept
class Entry:
    """One agent that takes calls, or sleeps and takes them all the same."""

    cluster: str
    id: AgentId
    incarnation: Incarnation
    endpoints: Mapping[str, str]
    phase: Literal["ready", "hibernated"] = "ready"
    health_url: str | None = None
    group: str = ""
    klass: str = ""
    version: str = ""
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: {"timeouts_s": ..., "traits": ...}

    @cached_property
    def digest(self) -> str:
        """Another one whenever it has to be registered anew."""
        facts = json.dumps([self.tags, self._meta()], sort_keys=True)
        return blake2b(facts.encode(), digest_size=8).hexdigest()

    @property
    def tags(self) -> list[str]:
        told = {"agent": self.id.name, "class": self.klass, "group": self.group, "version": self.version}
        return [f"{key}-{value}" for key, value in {**told, "machine": self.id.machine}.items() if value]

    def definition(self, ttl_s: float, ready_check_s: float | None, status: Status = "passing") -> dict[str, Any]:
        """What Consul is given (PUT /v1/agent/service/register). Passing from the start: it is, and the first feed may be late."""
        host, port = address_of(self.endpoints.get(INBOX) or self.endpoints[INBOX_LOCAL])
        ends = {"DeregisterCriticalServiceAfter": DEREGISTER_AFTER}
        checks = [
            {"CheckID": check_id(self.id), "Name": "fed by its node", "TTL": f"{ttl_s:g}s", "Status": status, **ends}
        ]
        if ready_check_s and self.health_url:
            url = self.health_url.removesuffix("/health") + "/ready"
            timeout = {"Interval": f"{ready_check_s:g}s", "Timeout": f"{min(ready_check_s, 5.0):g}s"}
            checks.append(
                {"CheckID": f"ready:{self.id}", "Name": "/ready", "HTTP": url, "Status": "passing", **timeout, **ends}
            )
        return {
            "ID": str(self.id),
            "Name": service_name(self.cluster),
            "Address": host,
            "Port": port,
            "Tags": self.tags,
            "Meta": {**self._meta(), "digest": self.digest},
            "Checks": checks,
        }

    def _meta(self) -> dict[str, str]:
        meta = {"agentkit": LAYOUT, "id": str(self.id), "incarnation": str(self.incarnation), "phase": self.phase}
        meta |= {name: address for name, address in self.endpoints.items() if name in (INBOX, INBOX_LOCAL)}
        meta |= {key: value for key, value in (("health", self.health_url), ("group", self.group)) if value}
        if any(self.methods.values()):
            text = json.dumps(self.methods, separators=(",", ":"))  # ASCII: a character is a byte
            pieces = [text[at : at + MAX_META_VALUE] for at in range(0, len(text), MAX_META_VALUE)]
            if len(pieces) <= MAX_PIECES:
                meta |= {f"methods-{number}": piece for number, piece in enumerate(pieces)}
        return meta


def service_name(cluster: str) -> str:
    return f"agentkit-{cluster}"


def check_id(id: AgentId) -> str:
    return f"service:{id}"


def address_of(endpoint: str) -> tuple[str, int]:
    """Host and port of "tcp://host:port"; ValueError when it is none."""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not (
        endpoint.startswith("tcp://") and colon and host and port.isascii() and port.isdigit() and int(port) < 65536
    ):
        raise ValueError(f"{endpoint[:100]!r} is no tcp://host:port")
    return host.strip("[]"), int(port)


def entry_of(service: Mapping[str, Any], cluster: str) -> Entry | None:
    """The entry that a service of Consul's is; None when somebody else put it there, or another version of us."""
    try:
        meta = service["Meta"] or {}
        if service["Service"] != service_name(cluster) or meta.get("agentkit") != LAYOUT or meta["id"] != service["ID"]:
            return None
        endpoints = {name: str(meta[name]) for name in (INBOX, INBOX_LOCAL) if name in meta}
        for endpoint in endpoints.values():
            address_of(endpoint)
        health = meta.get("health")
        if not endpoints or (health is not None and not str(health).startswith("http://")):
            return None
        return Entry(
            cluster=cluster,
            id=AgentId.parse(str(meta["id"])),
            incarnation=Incarnation(int(meta["incarnation"])),
            endpoints=endpoints,
            phase="hibernated" if meta.get("phase") == "hibernated" else "ready",
            health_url=health,
            group=str(meta.get("group", "")),
            methods=_methods(meta),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError):
        return None


def entries_of(services: Iterable[Mapping[str, Any]], cluster: str) -> tuple[dict[AgentId, Entry], int]:
    """What of these are agents, and how many are not. Of two lives of one agent (two Consul agents were told) the newer counts."""
    found: dict[AgentId, Entry] = {}
    strangers = 0
    for service in services:
        entry = entry_of(service, cluster)
        if entry is None:
            strangers += 1
        elif entry.id not in found or found[entry.id].incarnation < entry.incarnation:
            found[entry.id] = entry
    return found, strangers


def _methods(meta: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    pieces = [meta[f"methods-{number}"] for number in range(MAX_PIECES) if f"methods-{number}" in meta]
    if not pieces:
        return {}
    told = json.loads("".join(pieces))
    timeouts = {str(name): float(value) for name, value in dict(told.get("timeouts_s", {})).items()}
    traits = {str(name): dict(value) for name, value in dict(told.get("traits", {})).items()}
    return {"timeouts_s": timeouts, "traits": traits}
