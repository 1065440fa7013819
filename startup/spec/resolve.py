"""From what a file says to the Fleet: defaults merged, replicas expanded, names resolved, ports given out. No I/O.

What can't be resolved is a Problem, and the rest is resolved all the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from agentkit.names import AgentId, MachineName
from startup.spec.assign import PortGiver, shifted
from startup.spec.cluster_model import ConsulModel, KeysModel
from startup.spec.draft import Entry
from startup.spec.edges import Names
from startup.spec.fleet import (
    AgentSpec,
    AgentTarget,
    ConsulAccess,
    ErrorRule,
    External,
    Fleet,
    HealthCheckPolicy,
    HibernatePolicy,
    MachineSpec,
    MeshSpec,
    ProgramTarget,
    ReadyWhen,
    RestartPolicy,
    RolloutSpec,
    SecretRef,
    SshAccess,
)
from startup.spec.hosts import LOOPBACK
from startup.spec.members import Member, order_of, project_root_of
from startup.spec.model import FileModel, OnErrorModel, ReadyModel, rules_of
from startup.spec.parse import Parsed
from startup.spec.policies import policy_of
from startup.spec.ports import Claim, PortPair
from startup.spec.problem import Problem
from startup.spec.resources import pools_of, resources_of
from startup.spec.source import Table
from startup.spec.states import state_of
from startup.spec.units import PortRange
from startup.spec.verdict import SKIPPABLE, Order, Verdict

#: What an agent with keys imports: 1.9 MB more for each, or 0.5 MB where the zygote has imported it.
KEYS_MODULE: Final = "agentkit.transport.door"

#: What agents with a State import: 12 ms and 1.2 MB for each; and those whose state is in Redis: 90 ms.
STATE_MODULES: Final = ("agentkit.agent.state_keeper", "agentkit.state.sqlite")
REDIS_MODULE: Final = "agentkit.state.redis"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The fleet, and what checks need to know besides."""

    fleet: Fleet
    file: FileModel
    settings: Table  #: top-level keys as written, for their places
    entries: Mapping[AgentId, Entry]
    claims: tuple[Claim, ...]
    ranges: Mapping[str, PortRange]  #: class -> range, `--port-offset` included
    hosts: Mapping[str, str]  #: machine -> host_key of its host
    orders: Mapping[AgentId, Order]  #: what was looked at for it; commands have none

    @cached_property
    def specs(self) -> Mapping[AgentId, AgentSpec]:
        """The fleet's agents by id."""
        return {spec.id: spec for spec in self.fleet.agents}

    def place(self, id: AgentId, *path: str | int) -> str:
        """ "file:line" of a key of the agent, or of its entry."""
        return str(self.entries[id].place_of(*path))


def resolved(
    parsed: Parsed,
    members: tuple[Member, ...],
    *,
    path: Path,
    cluster: str | None,
    verdicts: Mapping[Order, Verdict],
    hosts: Mapping[str, str],
    port_offset: int,
    previous_ports: Mapping[AgentId, PortPair],
    problems: list[Problem],
) -> Resolved:
    """The whole fleet. `verdicts` may be empty: then every script counts as an agent. `hosts`: machine -> host_key of its host."""
    file = parsed.file
    root = project_root_of(parsed, path)
    entries: dict[AgentId, Entry] = {}
    unique: list[Member] = []
    for member in members:
        if member.id() in entries:
            problems.append(_duplicate(member, entries[member.id()]))
            continue
        unique.append(member)
        for slot in range(member.settings.replicas):
            entries[member.id(slot)] = member.entry
    orders = {member.id(): order for member in unique if (order := order_of(member.settings, root))}
    targets = {member.id(): _target(member, root, verdicts) for member in unique}
    ranges = {name: wanted.shifted(port_offset) for name, wanted in file.port_ranges.items()}
    ports = PortGiver(parsed, ranges, hosts, port_offset, previous_ports, problems)
    pairs = ports.given_out(unique, targets)
    names = Names(entries, file.external)
    agents = tuple(
        _spec(
            member,
            slot,
            targets[member.id()],
            pairs[member.id(slot)],
            names,
            verdicts,
            root,
            port_offset,
            file,
            problems,
        )
        for member in unique
        for slot in range(member.settings.replicas)
    )
    fleet = Fleet(
        cluster=cluster or file.cluster,
        project_root=str(root),
        file=str(path.resolve()),
        machines=tuple(_machine(name, file, hosts, port_offset, parsed) for name in file.machines),
        agents=agents,
        externals=tuple(External(name=name, tcp=probe.tcp, http=probe.http) for name, probe in file.external.items()),
        registry=file.registry,
        consul=_consul(file),
        security="loopback" if file.security is None else "none" if file.security == "none" else "curve",
        keys=file.security.keys if isinstance(file.security, KeysModel) else "",
        encrypts_loopback=isinstance(file.security, KeysModel) and file.security.local == "curve",
        preload=tuple(file.preload),
        pools=pools_of(file),
        mesh=MeshSpec(suspect_s=file.mesh.suspect, unreachable_s=file.mesh.unreachable),
        rollout=RolloutSpec(max_unavailable=file.rollout.max_unavailable, rollback=file.rollout.rollback),
        port_ranges={name: (wanted.first, wanted.last) for name, wanted in ranges.items()},
        forbidden_ports=tuple(file.forbidden_ports),
        phases=tuple(tuple(groups) for groups in file.phases),
        restart_strategies=dict(file.restart_strategies),
    )
    if fleet.needs_keys:
        fleet = replace(fleet, preload=(*fleet.preload, KEYS_MODULE))
    if any(verdict.keeps_state for verdict in verdicts.values()):
        is_shared = any(spec.state.store == "redis" for spec in agents)
        fleet = replace(fleet, preload=(*fleet.preload, *STATE_MODULES, *([REDIS_MODULE] if is_shared else [])))
    return Resolved(
        fleet=fleet,
        file=file,
        settings=parsed.settings,
        entries=entries,
        claims=tuple(ports.claims),
        ranges=ranges,
        hosts=hosts,
        orders=orders,
    )


def _duplicate(member: Member, first: Entry) -> Problem:
    return Problem(
        check="duplicate-name", place=str(member.entry.place), at=member.entry.at,
        found=f"a second `{member.entry.name}` on {member.machine} (first: {first.at}, {first.place})",
        want="each name once per machine", fix="rename one, or use `replicas`",
    )  # fmt: skip


def _target(member: Member, root: Path, verdicts: Mapping[Order, Verdict]) -> AgentTarget | ProgramTarget:
    order = order_of(member.settings, root)
    if order is None:
        return ProgramTarget(argv=tuple(member.settings.command or ()))
    verdict = verdicts.get(order)
    if order.script is None:
        return AgentTarget(module=order.module, cls=order.cls)
    if verdict is not None and verdict.kind == "program":
        return ProgramTarget(script=_from_root(order.script, root))
    return AgentTarget(script=_from_root(order.script, root), cls=verdict.cls if verdict and verdict.cls else order.cls)


def _from_root(script: str, root: Path) -> str:
    """So that machines may have the project in different places, and a move of it changes no agent."""
    path = Path(script)
    return str(path.relative_to(root)) if path.is_relative_to(root) else script


def _spec(
    member: Member,
    slot: int,
    target: AgentTarget | ProgramTarget,
    ports: PortPair,
    names: Names,
    verdicts: Mapping[Order, Verdict],
    root: Path,
    port_offset: int,
    file: FileModel,
    problems: list[Problem],
) -> AgentSpec:
    settings, entry = member.settings, member.entry
    is_agent = isinstance(target, AgentTarget)
    found = problems if slot == 0 else []  # the slots of an agent have the same dependencies: one report is enough
    dependencies = (names.dependency(member, index, found) for index in range(len(settings.dependencies)))
    order = order_of(settings, root)
    verdict = verdicts.get(order) if order else None
    return AgentSpec(
        id=member.id(slot),
        group=entry.group,
        klass=member.klass,
        target=target,
        port=ports[0],
        health_port=ports[1],
        dependencies=tuple(dependency for dependency in dependencies if dependency is not None),
        required=settings.required,
        enabled=settings.enabled,
        kind=settings.kind,
        sockets=settings.sockets or ("adopt" if is_agent else "self"),
        ready=_ready(member, is_agent, ports, port_offset),
        env=dict(settings.env),
        pass_env=tuple(settings.pass_env),
        secrets={
            name: SecretRef(file=ref.file, env=ref.env, as_env=ref.as_env) for name, ref in settings.secrets.items()
        },
        config=plain(settings.config),
        resources=resources_of(member, file),
        user=settings.user or "",
        start_timeout_s=settings.start.timeout,
        restart=RestartPolicy(
            policy=settings.restart.policy,
            delay_s=settings.restart.delay,
            factor=settings.restart.factor,
            max_delay_s=settings.restart.max_delay,
            jitter=settings.restart.jitter,
            max_attempts=settings.restart.max_attempts,
            window_s=settings.restart.window,
            stable_after_s=settings.restart.stable_after,
            retry_failed_after_s=settings.restart.retry_failed_after,
        ),
        health_check=HealthCheckPolicy(
            interval_s=settings.health_check.interval,
            timeout_s=settings.health_check.timeout,
            retries=settings.health_check.retries,
        ),
        watchdog_s=settings.watchdog,
        shutdown_grace_s=settings.shutdown.grace,
        trace_sample=settings.trace.sample,
        roll=settings.roll,
        state=state_of(settings.state),
        hibernate=HibernatePolicy(
            after_s=settings.hibernate.after,
            depth=settings.hibernate.depth,
            events=settings.hibernate.events,
            wake_dependencies=settings.hibernate.wake_dependencies,
        ),
        resource_memory_bytes=settings.resource_memory,
        policy=policy_of(settings.serve, settings.calls) if is_agent else {},
        on_error=tuple(_error_rule(rule) for rule in rules_of(settings.on_error)),
        source=str(entry.place),
        problem=verdict.message if verdict and verdict.kind in SKIPPABLE and not settings.required else "",
    )


def plain(value: Any) -> Any:
    """Tables and Items as ordinary dicts and lists: what a revision holds."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def _ready(member: Member, is_agent: bool, ports: PortPair, offset: int) -> ReadyWhen:
    ready = member.settings.ready
    if ready is None:
        return ReadyWhen(notify=True) if is_agent else ReadyWhen(tcp_port=ports[0])
    if not isinstance(ready, ReadyModel):
        return ReadyWhen(notify=True)
    if ready.tcp is not None:
        own = ready.tcp == member.settings.port
        port = ports[0] if own else shifted(ready.tcp, member.entry.keys.get("ready"), "tcp", offset)
        return ReadyWhen(tcp_port=port)
    if ready.http is not None and ready.http.startswith("/") and ports[1] is None:
        return ReadyWhen(http_url=f"http://127.0.0.1:{ports[0]}{ready.http}")
    return ReadyWhen(http_url=ready.http, log_regex=ready.log, after_s=ready.after)


def _error_rule(rule: OnErrorModel) -> ErrorRule:
    return ErrorRule(do=rule.do, severity=rule.severity, after=rule.after, within_s=rule.within, url=rule.url)


def _consul(file: FileModel) -> ConsulAccess | None:
    if file.registry != "consul":
        return None
    consul = file.consul or ConsulModel()
    tls, token = consul.tls, consul.token
    return ConsulAccess(
        address=consul.address,
        token=SecretRef(file=token.file, env=token.env) if token else None,
        datacenter=consul.datacenter,
        tls=tls is not None,
        ca=tls.ca if tls else None,
        cert=tls.cert if tls else None,
        key=tls.key if tls else None,
        ready_check_s=consul.ready_check,
        leader_ttl_s=consul.leader_ttl,
        config_prefix=consul.config_prefix or "",
    )


def _machine(name: str, file: FileModel, hosts: Mapping[str, str], offset: int, parsed: Parsed) -> MachineSpec:
    machine = file.machines[name]
    table = parsed.settings.get("machines", {}).get(name)
    ssh = machine.ssh
    return MachineSpec(
        name=MachineName(name),
        host=machine.host,
        node_port=None if machine.node_port is None else shifted(machine.node_port, table, "node_port", offset),
        ssh=SshAccess(**ssh.model_dump()) if ssh else None,
        python=machine.python,
        workdir=machine.workdir,
        root=machine.workdir if hosts[name] != LOOPBACK else None,
        memory_budget_bytes=machine.memory_budget or file.memory_budget,
    )
