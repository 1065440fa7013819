"""Is Consul fit to be this fleet's directory? What was found (`ask`), and what is made of it (`examine`, pure)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from agentkit.clock import wall_s
from agentkit.directory.entries import entry_of, service_name
from agentkit.directory.registering import found_of
from agentkit.errors import AgentkitError
from startup.cli.fitness import Finding, Verdict
from startup.spec.fleet import ConsulAccess, Fleet

if TYPE_CHECKING:
    from agentkit.directory.consul import ConsulClient

#: Tested with this one; what is older has not been.
TESTED: Final = (1, 8, 7)
#: Clocks that differ by more, in seconds, make logs hard to read and certificates fail.
CLOCK_S: Final = 5.0
#: Of the session that is opened to see whether it may be: the shortest that Consul has.
_SESSION_TTL_S: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsulFacts:
    """What Consul says. `error`: why nothing else is known."""

    address: str
    error: str = ""
    version: str = ""
    leader: str = ""
    clock_off_s: float | None = None  #: how far its clock is ahead of ours
    refused: str = ""  #: why an entry could not be registered
    cluster: str = ""
    no_locks: str = ""  #: why a key could not be locked by a session, as leaders do
    config_prefix: str = ""  #: of the file; empty: no config is read from Consul
    no_config: str = ""  #: why nothing below it could be read
    strangers: tuple[str, ...] = ()  #: entries under our name that are no agents
    taken: tuple[str, ...] = ()  #: ids of our agents under which somebody else registered a service


def ask(fleet: Fleet, access: ConsulAccess, machines: tuple[str, ...]) -> ConsulFacts:
    """Ask this machine's Consul agent. An entry is put there and taken away again: nothing else tells what a token may do."""
    from agentkit.directory.consul_http import RegistryAway, RegistryError
    from startup.node.registry.registry import client_of

    facts: dict[str, Any] = {
        "address": access.address,
        "cluster": fleet.cluster,
        "config_prefix": access.config_prefix,
    }
    try:
        client = client_of(access)
    except (OSError, ImportError, AgentkitError) as exc:
        return ConsulFacts(**facts, error=str(exc))
    try:
        facts["leader"] = client.leader()
        facts["clock_off_s"] = _ahead_s(client.date())
        facts["refused"] = _refused(client, fleet.cluster)
        facts["no_locks"] = _no_locks(client, fleet.cluster)
        if access.config_prefix:
            facts["no_config"] = _no_config(client, access.config_prefix)
        if not facts["refused"]:
            facts["version"] = str(client.about()["Config"]["Version"])
            services = client.services()
            facts["taken"] = tuple(
                sorted(id for machine in machines for id in found_of(services, fleet.cluster, machine).taken)
            )
            there = client.passing(service_name(fleet.cluster)).services
            facts["strangers"] = tuple(sorted(str(s.get("ID")) for s in there if entry_of(s, fleet.cluster) is None))
    except RegistryAway as exc:
        return ConsulFacts(**facts, error=str(exc))
    except RegistryError as exc:
        return ConsulFacts(**{**facts, "refused": str(exc)})
    finally:
        client.close()
    return ConsulFacts(**facts)


def examine(facts: ConsulFacts) -> list[Finding]:
    """One finding for each question that could be asked."""
    return list(_findings(facts))


def _findings(facts: ConsulFacts) -> Iterator[Finding]:
    fix = f"start a Consul agent at {facts.address}, or set consul.address (and consul.tls) to the one that runs"
    yield _found("consul", not facts.error, facts.error or f"answers at {facts.address}", "an answer", fix)
    if facts.error:
        return
    fix = "see to the servers: without a leader nothing can be registered"
    yield _found("consul leader", bool(facts.leader), facts.leader or "none", "one is elected", fix)
    fix = 'a token whose policy has service_prefix "agentkit-" { policy = "write" }, node_prefix "" and agent_prefix "" { policy = "read" }'
    yield _found(
        "consul token", not facts.refused, facts.refused or "may register and read", "it may register and read", fix
    )
    leads = f'key_prefix "agentkit/{facts.cluster}/" and session_prefix "", both {{ policy = "write" }}'
    fix = f"a token whose policy has {leads}; a fleet without leaders (docs/leadership.md) can do without"
    value = facts.no_locks or "keys can be locked"
    yield _found("consul leaders", not facts.no_locks, value, "locks for agents that lead", fix, "warn")
    if facts.config_prefix:
        fix = f'a token whose policy has key_prefix "{facts.config_prefix}/" {{ policy = "read" }}, or no config_prefix'
        value = facts.no_config or f"{facts.config_prefix}/ can be read"
        yield _found("consul config", not facts.no_config, value, "keys below config_prefix can be read", fix)
    if facts.clock_off_s is not None:
        off = f"{facts.clock_off_s:+.0f} s from ours"
        fix = "let NTP keep both clocks"
        yield _found("consul clock", abs(facts.clock_off_s) <= CLOCK_S, off, f"within {CLOCK_S:g} s", fix, "warn")
    if facts.refused:
        return
    good = _numbers(facts.version) >= TESTED
    fix = "use a newer Consul: older ones were never tried"
    yield _found("consul version", good, facts.version, ">= " + ".".join(map(str, TESTED)), fix, "warn")
    others = ", ".join(facts.strangers[:5]) or "none"
    fix = "deregister what somebody else put under this cluster's name, or give the cluster another"
    yield _found("consul strangers", not facts.strangers, others, "no entry that is no agent", fix, "warn")
    fix = "deregister these services, or rename the agents: they are not registered"
    ids = ", ".join(facts.taken[:5]) or "none"
    yield _found("consul ids", not facts.taken, ids, "no service of somebody else under an agent's id", fix)


def _found(name: str, good: bool, value: str, need: str, fix: str, otherwise: Verdict = "fail") -> Finding:
    return Finding(name=name, verdict="ok" if good else otherwise, value=value, need=need, fix="" if good else fix)


def _refused(client: ConsulClient, cluster: str) -> str:
    """Why the token may not register; empty when it may."""
    from agentkit.directory.consul_http import RegistryRefused

    definition: Mapping[str, Any] = {"ID": f"agentkit-doctor-{os.getpid()}", "Name": f"{service_name(cluster)}-doctor"}
    try:
        client.register(definition)
        client.deregister(definition["ID"])
    except RegistryRefused as exc:
        return str(exc)
    return ""


def _no_locks(client: ConsulClient, cluster: str) -> str:
    """Why a leader's lock could not be had; empty when it can. One is taken, let go and deleted: rights are told in no other way."""
    from agentkit.directory.consul_http import RegistryAway, RegistryError

    name = f"agentkit/{cluster}/doctor-{os.getpid()}"
    try:
        session = client.open_session(f"agentkit doctor of {cluster}", _SESSION_TTL_S)
        try:
            client.acquire(name, b"", session)
            client.delete(name)
        finally:
            client.close_session(session)
    except RegistryAway:
        raise
    except RegistryError as exc:
        return str(exc)
    return ""


def _no_config(client: ConsulClient, prefix: str) -> str:
    """Why nothing below `prefix` can be read; empty when it can. One key is asked for: of many, those that are closed are just left out."""
    from agentkit.directory.consul_http import RegistryRefused

    try:
        client.key(prefix.strip("/") + "/agentkit-doctor")
    except RegistryRefused as exc:
        return str(exc)
    return ""


def _ahead_s(date: str | None) -> float | None:
    if not date:
        return None
    try:
        return parsedate_to_datetime(date).timestamp() - wall_s()
    except ValueError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("+")[0].partition("-")[0].split(".") if part.isdigit())
