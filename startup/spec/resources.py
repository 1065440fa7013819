"""From what a file says of resources to what the fleet holds: an agent's own, then its class's pool on its machine. Pure."""

from __future__ import annotations

from agentkit.names import MachineName
from startup.spec.fleet import PoolSpec, Resources
from startup.spec.members import Member
from startup.spec.model import FileModel
from startup.spec.resources_model import PoolModel


def resources_of(member: Member, file: FileModel) -> Resources:
    """Of each slot of an agent."""
    said, pool = member.settings.resources, _pool(file, member.klass, member.machine)
    return Resources(
        memory_limit_bytes=said.limits.memory,
        memory_request_bytes=said.requests.memory,
        cpu_limit=said.limits.cpu,
        pids_limit=said.limits.pids,
        cpu_affinity=tuple(said.cpu_affinity or (pool.cpu_affinity if pool else ())),
    )


def pools_of(file: FileModel) -> tuple[PoolSpec, ...]:
    """On every machine."""
    return tuple(
        PoolSpec(klass=klass, machine=MachineName(name), memory_bytes=pool.memory, reserve_bytes=pool.reserve)
        for name, machine in file.machines.items()
        for klass in {**file.pools, **machine.pools}
        if (pool := _pool(file, klass, name)) is not None
    )


def _pool(file: FileModel, klass: str, machine: str) -> PoolModel | None:
    """The machine's own goes before the file's, whole."""
    return file.machines[machine].pools.get(klass) or file.pools.get(klass)
