"""The machines of a fleet that are not this host, as commands reach their nodes: with an operator's key, else over SSH where the
file says how. `up` takes SSH first, which can also start a node."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentkit.directory.locate import cluster_of, default_file
from agentkit.errors import NoNode
from startup.cli.common import note
from startup.errors import MachineTrouble
from startup.machines.found import Found

if TYPE_CHECKING:
    from startup.control import Door
    from startup.machines.remote import Project, Remote
    from startup.spec.fleet import Fleet, MachineSpec

#: How long a node that has ended is asked whether it is still there, in seconds.
_STILL_THERE_S: Final = 2.0


def elsewhere(machines: Iterable[MachineSpec]) -> list[MachineSpec]:
    """Those whose address is not one of this host's."""
    from startup.spec.hosts import LOOPBACK, host_key

    return [machine for machine in machines if host_key(machine.host) != LOOPBACK]


def known_machines(cluster: str) -> list[MachineSpec]:
    """The machines of the newest revision that is kept on this host, whether or not anything runs; else those of the default file."""
    from startup.spec.fleet import MachineSpec, SshAccess

    if (kept := _kept(cluster)) is None:
        fleet = _of_default_file(cluster)
        return list(fleet.machines) if fleet else []
    # not through pydantic, which takes 50 ms for a whole revision
    return [
        MachineSpec(**{**machine, "ssh": SshAccess(**ssh) if (ssh := machine["ssh"]) else None})
        for machine in kept["machines"]
    ]


def _known_keys(cluster: str) -> str:
    """`security.keys` of the same fleet."""
    kept = _kept(cluster)
    return str(kept.get("keys") or "") if kept is not None else keys_of(_of_default_file(cluster))


def keys_of(fleet: Fleet | None) -> str:
    """Its `security.keys`; "": the usual folder."""
    return fleet.keys if fleet else ""


@cache
def _kept(cluster: str) -> dict[str, Any] | None:
    import msgpack

    from startup.node.paths import state_root

    kept: list[dict[str, Any]] = []
    for path in (state_root() / cluster).glob("*/revision.msgpack"):
        with suppress(OSError, ValueError, KeyError):
            kept.append(msgpack.unpackb(path.read_bytes(), strict_map_key=False))
    return max(kept, key=lambda revision: int(revision["number"]))["fleet"] if kept else None


@cache
def _of_default_file(cluster: str) -> Fleet | None:
    """For an operator whose own host has no node."""
    if (file := default_file(Path())) is None or cluster_of(file) != cluster:
        return None
    from startup.spec.load import load

    loaded = load(file, environ=os.environ, inspect=False)
    return loaded.resolved.fleet if loaded.resolved else None  # its machines count, whatever else is wrong


def greet_ahead(stack: ExitStack, cluster: str) -> Remote | None:
    """Begin to log in on the machines that `cluster` had the last time, while its file is read. None: it had none, or is new."""
    kept = _kept(cluster)
    if kept is None or not any(machine.get("ssh") for machine in kept["machines"]):
        return None
    machines = [machine for machine in elsewhere(known_machines(cluster)) if machine.ssh is not None]
    if not machines:
        return None
    from startup.machines.remote import Remote

    remote = stack.enter_context(Remote(note))
    remote.greet(cluster, machines)
    return remote


class Elsewhere:
    """Work on other machines that was begun, and goes on while a command does something else."""

    def __init__(
        self, stack: ExitStack, cluster: str, machines: Collection[MachineSpec], remote: Remote | None = None
    ) -> None:
        """Everything ends with `stack`. `remote`: of `greet_ahead`."""
        self._stack = stack
        self._cluster = cluster
        self._machines = {str(machine.name): machine for machine in machines}
        self._remote = remote
        self._doors: dict[str, Door] = {}  #: by key
        self._whys: dict[str, str] = {}  #: there is none by key
        self._has_key = False

    def begin_up(self, fleet: Fleet, *, is_pushed: bool) -> None:
        """Bring up their nodes; those without SSH have to run already."""
        if machines := self._with_ssh():
            self._over_ssh().up(fleet, machines, lambda: project_of(fleet, is_pushed=is_pushed))
        self._by_key([it for it in self._machines.values() if it.ssh is None], keys_of(fleet))

    def begin_find(self) -> None:
        """Look for their nodes."""
        self._by_key(list(self._machines.values()), _known_keys(self._cluster))
        if machines := self._with_ssh():
            self._over_ssh().find(self._cluster, machines)

    def finish(self, tell: Callable[[str], None] = note) -> Found:
        """What came of it; troubles are told."""
        found = self._remote.finish() if self._remote is not None else Found()
        found.doors |= self._doors
        for name, machine in self._machines.items():
            if machine.ssh is None and name not in found.doors:
                found.troubles[name] = self._no_way(machine)
        for _, trouble in sorted(found.troubles.items()):
            tell(f"agentkit: {trouble}")
        return found

    def clean(self) -> dict[str, list[int]]:
        """End what is left of those that were found, by machine; after their nodes were told to stop."""
        ended = self._remote.clean(self._cluster) if self._remote is not None else {}
        for name, door in self._doors.items():
            try:
                door.open(timeout_s=_STILL_THERE_S).close()
            except NoNode:
                ended[name] = []
        return ended

    def _no_way(self, machine: MachineSpec) -> MachineTrouble:
        """For one without `ssh`, whose node did not answer, or answers only to others."""
        name = str(machine.name)
        run = f"`agentkit node run --cluster {self._cluster} --machine {name}`, or the unit of `agentkit node unit`"
        over_ssh = f"or set machines.{name}.ssh, so that commands start and reach it over SSH"
        why = self._whys.get(name, "")
        if self._has_key:
            return MachineTrouble(name, machine.host, "its node", why, f"start it there ({run}), {over_ssh}")
        fix = f"have the operator's key here (`agentkit keys`) and a node there ({run}), {over_ssh}; or type the command there"
        return MachineTrouble(name, machine.host, "its node", f"no way to it from here: {why}", fix)

    def _with_ssh(self) -> list[MachineSpec]:
        return [it for name, it in self._machines.items() if it.ssh is not None and name not in self._doors]

    def _over_ssh(self) -> Remote:
        from startup.machines.remote import Remote

        if self._remote is None:
            self._remote = self._stack.enter_context(Remote(note))
        return self._remote

    def _by_key(self, machines: Collection[MachineSpec], configured: str) -> None:
        if machines:
            from startup.cli.by_key import operator_keys, ways

            found = ways(machines, operator_keys(configured))
            self._doors |= found.doors
            self._whys |= found.whys
            self._has_key = found.has_key


def project_of(fleet: Fleet, *, is_pushed: bool) -> Project:
    """What has to be alike on all machines; reads every file of it."""
    from startup.machines import content
    from startup.machines.remote import Project

    root = Path(fleet.project_root)
    scripts = (getattr(spec.target, "script", None) for spec in fleet.agents)
    named = [fleet.file, *(str(root / script) for script in scripts if script)]
    return Project(root=root, files=content.digests(root, content.files(root, named)), is_pushed=is_pushed)
