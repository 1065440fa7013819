"""The entrance of spec/: a file in, the resolved fleet and every problem out."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentkit.names import AgentId
from startup.spec import legacy
from startup.spec.checks import module_problems, pure_problems
from startup.spec.cluster_model import MachineModel
from startup.spec.draft import Draft, drafted
from startup.spec.fleet import Fleet
from startup.spec.hosts import LOOPBACK, host_key
from startup.spec.include import read_merged
from startup.spec.interpolate import PORT_OFFSET
from startup.spec.members import Member, members_of, order_of, project_root_of
from startup.spec.modules import look_at, source_file
from startup.spec.parse import Parsed, parsed
from startup.spec.peers import called_methods, peer_problems
from startup.spec.policies import policy_of
from startup.spec.pool_checks import machine_problems
from startup.spec.pools import this_machine
from startup.spec.ports import PortPair
from startup.spec.problem import Problem
from startup.spec.programs import command_problems
from startup.spec.resolve import Resolved, plain, resolved
from startup.spec.source import Table
from startup.spec.taken import taken_problems
from startup.spec.verdict import Asked, Order, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """`fleet` is None where the file can't be resolved as a whole. With any of `errors`, nothing may be started."""

    fleet: Fleet | None
    problems: tuple[Problem, ...]
    resolved: Resolved | None = None  #: what could be resolved, errors or not; for `check`

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    machines: Mapping[str, Path] | None = None,
    cluster: str | None = None,
    port_offset: int = 0,
    previous_ports: Mapping[AgentId, PortPair] | None = None,
    inspect: bool = True,
    cache: Path | None = None,
) -> Loaded:
    """Read, fill in, resolve and check `path`. Depends on the file, its scripts and `environ`, not on what runs now.

    `machines`: files of an older shape by machine; `path`, if any, is then the overlay that adds what they leave out.
    `cluster`: instead of the file's own. `port_offset`: added to every port that is not made from PORT_OFFSET.
    `previous_ports`: `ports_of(last fleet)`, kept for agents whose ports are not written. `inspect`: import modules in
    throw-away children (20 s at most); without, every script counts as an agent. `cache`: where their verdicts are kept."""
    problems: list[Problem] = []
    values = {**environ, PORT_OFFSET: str(port_offset)} if port_offset else environ
    draft = _drafted(path, machines or {}, cluster, values, problems)
    if draft is None:
        return Loaded(fleet=None, problems=tuple(problems))
    path = path or next(iter((machines or {}).values()))
    file = parsed(draft, problems)
    members = members_of(file, problems)
    hosts = {name: host_key(machine.host) for name, machine in file.file.machines.items()}
    verdicts = _verdicts(file, members, hosts, path, cache) if inspect else {}
    whole = resolved(
        file,
        members,
        path=path,
        cluster=cluster,
        verdicts=verdicts,
        hosts=hosts,
        port_offset=port_offset,
        previous_ports=previous_ports or {},
        problems=problems,
    )
    is_whole = not any(problem.severity == "error" for problem in problems)
    problems += pure_problems(whole)
    problems += module_problems(whole, verdicts)
    problems += peer_problems(whole, verdicts)
    if inspect:
        problems += command_problems(whole, environ)
    return Loaded(fleet=whole.fleet if is_whole else None, problems=tuple(problems), resolved=whole)


def check(loaded: Loaded, *, own_pids: Collection[int] = (), own_ports: Collection[int] = ()) -> tuple[Problem, ...]:
    """What stands in the way on this machine at this moment: ports that strangers have taken, memory and CPUs that it does not have.

    `own_pids`, `own_ports`: of the cluster's running nodes, zygotes and agents, which are no strangers."""
    if loaded.resolved is None:
        return ()
    enabled = {spec.id for spec in loaded.resolved.fleet.agents if spec.enabled}
    claims = [claim for claim in loaded.resolved.claims if isinstance(claim.owner, str) or claim.owner in enabled]
    taken = taken_problems(claims, own_pids=own_pids, own_ports=own_ports)
    return (*taken, *machine_problems(loaded.resolved, this_machine()))


def _drafted(
    path: Path | None,
    machines: Mapping[str, Path],
    cluster: str | None,
    environ: Mapping[str, str],
    problems: list[Problem],
) -> Draft | None:
    """None: some file could not be read, and `problems` says why."""
    document = None if path is None else read_merged(path, environ, problems)
    if path is not None and document is None:
        return None
    if machines:
        files = {name: read_merged(file, environ, problems) for name, file in machines.items()}
        found: dict[str | None, Table] = {name: file for name, file in files.items() if file is not None}
        return legacy.merged(document, found, cluster=cluster, problems=problems) if len(found) == len(files) else None
    assert document is not None, "without machines there is a path"
    if legacy.is_older(document):
        return legacy.merged(None, {None: document}, cluster=cluster, problems=problems)
    return drafted(document, problems)


def _verdicts(
    file: Parsed, members: tuple[Member, ...], hosts: Mapping[str, str], path: Path, cache: Path | None
) -> dict[Order, Verdict]:
    """Looks at each module once, with what all agents that share it want of it, in their order."""
    root = project_root_of(file, path)
    called = called_methods(members)
    asked: dict[Order, list[Asked]] = {}
    elsewhere: dict[Order, Verdict] = {}
    here: set[Order] = set()
    seen: set[AgentId] = set()
    for member in members:
        order = order_of(member.settings, root)
        if order is None or member.id() in seen:
            continue
        seen.add(member.id())
        asked.setdefault(order, []).append(_asked(member, called.get(member.entry.name, ())))
        why_not = _why_not_here(member.machine, file.file.machines[member.machine], hosts[member.machine], order)
        if why_not:
            elsewhere[order] = Verdict(kind="not-checked", message=why_not)
        else:
            here.add(order)
    found = look_at({order: wanted for order, wanted in asked.items() if order in here}, cache=cache)
    return {**elsewhere, **found}


def _asked(member: Member, called: Collection[str]) -> Asked:
    asked: Asked = {"config": plain(member.settings.config)}
    if methods := policy_of(member.settings.serve, member.settings.calls).get("methods"):
        asked["methods"] = methods
    if called:
        asked["called"] = sorted(called)
    return asked


def _why_not_here(name: str, machine: MachineModel, host: str, order: Order) -> str:
    """Why a module of that machine can't be judged here; empty when it can."""
    file = source_file(order)
    if host != LOOPBACK and (file is None or not file.is_file()):
        return f"{name} is another machine"
    if machine.python is not None and Path(machine.python).expanduser().absolute() != Path(sys.executable).absolute():
        return f"{name} runs {machine.python}"
    return ""
