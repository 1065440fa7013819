"""The machines of a fleet that are not this host, as commands reach their nodes: over SSH where the file says how."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentkit.directory.locate import cluster_of, default_file
from startup.cli.common import note
from startup.errors import MachineTrouble

if TYPE_CHECKING:
    from startup.machines.remote import Found, Project, Remote
    from startup.spec.fleet import Fleet, MachineSpec


def elsewhere(machines: Iterable[MachineSpec]) -> list[MachineSpec]:
    """Those whose address is not one of this host's."""
    from startup.spec.hosts import LOOPBACK, host_key

    return [machine for machine in machines if host_key(machine.host) != LOOPBACK]


def known_machines(cluster: str) -> list[MachineSpec]:
    """The machines of the newest revision that is kept on this host, whether or not anything runs; else those of the default file."""
    import msgpack

    from startup.node.paths import state_root
    from startup.spec.fleet import MachineSpec, SshAccess

    kept: list[dict[str, Any]] = []
    for path in (state_root() / cluster).glob("*/revision.msgpack"):
        with suppress(OSError, ValueError, KeyError):
            kept.append(msgpack.unpackb(path.read_bytes(), strict_map_key=False))
    if not kept:
        return _of_default_file(cluster)
    # not through pydantic, which takes 50 ms for a whole revision
    machines = max(kept, key=lambda revision: int(revision["number"]))["fleet"]["machines"]
    return [
        MachineSpec(**{**machine, "ssh": SshAccess(**ssh) if (ssh := machine["ssh"]) else None}) for machine in machines
    ]


def _of_default_file(cluster: str) -> list[MachineSpec]:
    """For an operator whose own host has no node."""
    if (file := default_file(Path())) is None or cluster_of(file) != cluster:
        return []
    from startup.spec.load import load

    fleet = load(file, environ=os.environ, inspect=False).fleet
    return list(fleet.machines) if fleet else []


class Elsewhere:
    """Work on other machines that was begun, and goes on while a command does something else."""

    def __init__(self, stack: ExitStack, cluster: str, machines: Collection[MachineSpec]) -> None:
        """Everything ends with `stack`."""
        self._cluster = cluster
        self._reached = [machine for machine in machines if machine.ssh is not None]
        self._unreached = [machine for machine in machines if machine.ssh is None]
        self._remote: Remote | None = None
        if self._reached:
            from startup.machines.remote import Remote

            self._remote = stack.enter_context(Remote(note))

    def begin_up(self, fleet: Fleet, *, is_pushed: bool) -> None:
        """Bring up their nodes."""
        if self._remote is not None:
            self._remote.up(fleet, self._reached, lambda: project_of(fleet, is_pushed=is_pushed))

    def begin_find(self) -> None:
        """Look for their nodes."""
        if self._remote is not None:
            self._remote.find(self._cluster, self._reached)

    def finish(self) -> Found:
        """What came of it, troubles told."""
        from startup.machines.remote import Found

        found = self._remote.finish() if self._remote is not None else Found()
        for machine in self._unreached:
            found.troubles[str(machine.name)] = _no_way(self._cluster, machine)
        for _, trouble in sorted(found.troubles.items()):
            note(f"agentkit: {trouble}")
        return found

    def clean(self) -> dict[str, list[int]]:
        """End what is left of those that were found, by machine; after their nodes were told to stop."""
        return self._remote.clean(self._cluster) if self._remote is not None else {}


def project_of(fleet: Fleet, *, is_pushed: bool) -> Project:
    """What has to be alike on all machines; reads every file of it."""
    from startup.machines import content
    from startup.machines.remote import Project

    root = Path(fleet.project_root)
    scripts = (getattr(spec.target, "script", None) for spec in fleet.agents)
    named = [fleet.file, *(str(root / script) for script in scripts if script)]
    return Project(root=root, files=content.digests(root, content.files(root, named)), is_pushed=is_pushed)


def _no_way(cluster: str, machine: MachineSpec) -> MachineTrouble:
    run = f"agentkit node run --cluster {cluster} --machine {machine.name}"
    return MachineTrouble(
        str(machine.name),
        machine.host,
        "its node",
        "no way to it from here",
        f"set machines.{machine.name}.ssh, so that it is started over SSH; or start it there (`{run}`, or the systemd unit that "
        f"`agentkit node unit` prints) and run this command on that machine",
    )
