"""What is ordered from the zygote for one start of one agent: environment, folders, title, target. Pure but for `inherited`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from types import MappingProxyType
from typing import Final

from agentkit.names import Incarnation
from agentkit.settings import STATE_URL
from startup.node.paths import Places
from startup.node.zygote.link import FREE, Admission, ForkOrder
from startup.plan.rows import LOOPBACK
from startup.spec.fleet import AgentSpec, AgentTarget, Fleet, HibernatePolicy, MachineSpec, StatePolicy
from startup.spec.users import User

#: What every process gets from the node's own environment, when it is set there (configuration.md, "What a process inherits").
PASSED: Final = ("PATH", "HOME", "USER", "LANG", "TZ", "VIRTUAL_ENV", "AGENTKIT_DEBUG")
_PASSED_PREFIX: Final = "LC_"
_USUAL_STATE: Final = StatePolicy()
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
#: Files that agents make are the owner's, readable by the group.
UMASK: Final = 0o027


def fork_order(
    spec: AgentSpec,
    fleet: Fleet,
    places: Places,
    incarnation: Incarnation,
    nofile: int,
    key: str = "",
    admission: Admission = FREE,
    user: User | None = None,
    told: Mapping[str, str] = NOTHING,
) -> ForkOrder:
    """The order for a process of `spec` on this machine. Secrets stay references: the child resolves them. `key`: fingerprint of
    the one that it is to serve with; its secret the child reads itself. `admission`: what holds it to its limits. `user`: whom it
    runs as (doors.py). `told`: what its environment has besides."""
    machine = machine_of(fleet, places.machine)
    root = fleet.root_on(places.machine)
    target = asdict(spec.target)
    if target.get("script"):
        target["script"] = os.path.join(root, target["script"])  # noqa: PTH118 - an absolute one stays what it is
    return ForkOrder(
        key=str(spec.id),
        incarnation=incarnation,
        title=f"agentkit: agent {fleet.cluster}/{spec.machine}/{spec.name}#{spec.id.slot}",
        env={**environment(spec, fleet, places, incarnation, key), **told},
        cwd=machine.workdir or root,
        log_path=str(places.log(spec.id.instance)),
        target=target,
        sys_path=(root,),
        cpu_affinity=spec.resources.cpu_affinity,
        nofile=nofile,
        umask=UMASK,
        cgroups=admission.cgroups,
        rlimits=admission.rlimits,
        user=(user.uid, user.gid, user.groups) if user else None,
    )


def environment(
    spec: AgentSpec, fleet: Fleet, places: Places, incarnation: Incarnation, key: str = ""
) -> dict[str, str]:
    """All of it; LISTEN_* are added by the child. An agent's own `env` can replace what is inherited, not what we say."""
    return {**inherited(spec.pass_env), **spec.env, **_told(spec, fleet, places, incarnation), **_keys(fleet, key)}


def inherited(names: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The part of the node's environment that a process gets."""
    kept = {*PASSED, *names}
    found = _own_environment() if environ is None else environ
    return {name: value for name, value in found.items() if name in kept or name.startswith(_PASSED_PREFIX)}


@cache
def _own_environment() -> dict[str, str]:
    return dict(os.environ)  # it does not change any more, and each reading decodes all of it


def machine_of(fleet: Fleet, name: str) -> MachineSpec:
    """The machine's entry; one with defaults when the fleet does not know it (any more)."""
    for machine in fleet.machines:
        if machine.name == name:
            return machine
    return MachineSpec(name=name)  # type: ignore[arg-type]


def node_endpoint(machine: MachineSpec) -> str | None:
    """Where other nodes reach this machine's; None: on this host, and its node.json says where."""
    return f"tcp://{machine.host}:{machine.node_port}" if machine.node_port else None


def listening_on(spec: AgentSpec, host: str, security: str) -> dict[str, tuple[str, int]]:
    """LISTEN_FDNAMES -> address, for what the node binds for this agent. Nothing for `sockets: self`."""
    if spec.sockets == "self":
        return {}
    wanted = {"inbox-local": (LOOPBACK, spec.port)}
    is_off_loopback = security != "loopback" and not host.startswith("127.") and host != "localhost"
    if is_off_loopback:
        wanted["inbox"] = (host, spec.port)
    if spec.health_port:
        wanted["http"] = (host if is_off_loopback else LOOPBACK, spec.health_port)
    return wanted


def _keys(fleet: Fleet, key: str) -> dict[str, str]:
    if fleet.security != "curve":
        return {}
    told = {"AGENTKIT_KEYS": os.environ.get("AGENTKIT_KEYS") or fleet.keys, "AGENTKIT_KEY": key}
    return told | ({"AGENTKIT_LOCAL": "curve"} if fleet.encrypts_loopback else {})


def _told(spec: AgentSpec, fleet: Fleet, places: Places, incarnation: Incarnation) -> dict[str, str]:
    check = spec.health_check
    told = {
        "AGENT_NAME": str(spec.name),
        "AGENT_INSTANCE": spec.id.instance,
        "AGENT_MACHINE": str(spec.machine),
        "AGENT_CONFIG": json.dumps(spec.config),
        "NOTIFY_SOCKET": str(places.notify),
        "AGENTKIT_CLUSTER": fleet.cluster,
        "AGENTKIT_NODE": str(places.control),
        "AGENTKIT_INCARNATION": str(incarnation),
        "AGENTKIT_GRACE_S": f"{spec.shutdown_grace_s:g}",
        "AGENTKIT_TRACE_SAMPLE": f"{spec.trace_sample:g}",
        "AGENTKIT_DATA_DIR": str(places.data(spec.id.instance)),
        "AGENTKIT_SECURITY": fleet.security,
        "AGENTKIT_HEALTH": json.dumps(
            {"interval_s": check.interval_s, "timeout_s": check.timeout_s, "retries": check.retries}
        ),
    }
    if spec.port:
        told["PORT"] = str(spec.port)
    if spec.health_port:
        told["HEALTH_CHECK_PORT"] = str(spec.health_port)
    if spec.watchdog_s:
        told["WATCHDOG_USEC"] = str(round(spec.watchdog_s * 1e6))
    if spec.state != _USUAL_STATE:
        told |= _told_of_state(spec.state)
    if secrets := {**spec.secrets, **({STATE_URL: spec.state.secret} if spec.state.secret else {})}:
        told["AGENTKIT_SECRETS"] = json.dumps({name: asdict(ref) for name, ref in secrets.items()})
    if spec.policy:
        told["AGENTKIT_POLICY"] = json.dumps(spec.policy)
    if spec.hibernate != HibernatePolicy():
        told["AGENTKIT_HIBERNATE"] = json.dumps(
            {"after_s": spec.hibernate.after_s, "depth": spec.hibernate.depth, "events": spec.hibernate.events}
        )
    if spec.resource_memory_bytes:
        told["AGENTKIT_RESOURCE_MEMORY"] = str(spec.resource_memory_bytes)
    if spec.roll:
        told["AGENTKIT_ROLL"] = spec.roll
    if spec.kind == "task":
        told["AGENTKIT_KIND"] = "task"
    if isinstance(spec.target, AgentTarget):
        told["AGENTKIT_LOG_FORMAT"] = "json"
    return told


def _told_of_state(state: StatePolicy) -> dict[str, str]:
    told = {"AGENTKIT_STATE_STORE": state.store, "AGENTKIT_STATE_EVERY_S": f"{state.every_s:g}"}
    return told | ({STATE_URL: state.url} if state.url else {})
