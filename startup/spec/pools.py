"""Whether a fleet fits: into the pools of its classes, and onto a machine with its memory and CPUs. Pure, but for `this_machine`.

A pool is given out by what agents request: `requests.memory`, else their limit, else nothing is known of them and nothing counted. A
machine's own memory is compared with written requests alone: limits may well add up to more than there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agentkit.names import AgentId
from startup.spec.fleet import AgentSpec, Fleet, PoolSpec
from startup.spec.users import user_problem

#: So many of those that take the most are named.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is."""

    cpus: frozenset[int]
    memory_bytes: int
    user_problem: Callable[[str], str] = lambda _: ""  #: why it can't run an agent as that user


@dataclass(frozen=True, slots=True)
class Misfit:
    """One thing that does not fit, for a Problem or an answer of a node."""

    found: str
    want: str
    fix: str
    klass: str = ""  #: whose pool is too small
    id: AgentId | None = None  #: which agent asks for what there is not
    is_user: bool = False  #: and that is its user

    def __str__(self) -> str:
        return f"{self.found}; want {self.want}; {self.fix}"


def overruns(fleet: Fleet, machine: str | None = None) -> Iterator[Misfit]:
    """Pools of which more is requested than they have. `machine`: of that one alone."""
    for pool in fleet.pools:
        if pool.memory_bytes is None or machine not in (None, pool.machine):
            continue
        asked = _by_size(spec for spec in fleet.agents if (spec.klass, spec.machine) == (pool.klass, pool.machine))
        wanted, given = sum(size for size, _ in asked), pool.memory_bytes - pool.reserve_bytes
        if wanted > given:
            yield Misfit(
                klass=pool.klass,
                found=f"agents of class `{pool.klass}` on {pool.machine} request {_mib(wanted)}: {_named(asked)}",
                want=_given(pool, given),
                fix=f"raise `memory` by {_mib(wanted - given)}, lower their requests.memory, or move some to another machine",
            )


def misfits(fleet: Fleet, machine: str, there: Machine) -> Iterator[Misfit]:
    """What that machine does not have, of memory and CPUs."""
    specs = [spec for spec in fleet.agents if spec.machine == machine and spec.enabled]
    asked = _by_size(spec for spec in specs if spec.resources.memory_request_bytes is not None)
    reserve = sum(pool.reserve_bytes for pool in fleet.pools if pool.machine == machine)
    wanted = sum(size for size, _ in asked) + reserve
    if asked and wanted > there.memory_bytes:
        kept = f" and pools keep back {_mib(reserve)}" if reserve else ""
        yield Misfit(
            id=asked[0][1],
            found=f"agents on {machine} request {_mib(wanted - reserve)}{kept}: {_named(asked)}",
            want=f"at most {_mib(there.memory_bytes)}, which {machine} has",
            fix="lower their requests.memory, or move some to another machine",
        )
    for spec in specs:
        missing = set(spec.resources.cpu_affinity) - there.cpus
        if missing and not spec.id.slot:
            numbers = ", ".join(map(str, sorted(missing)))
            yield Misfit(
                id=spec.id,
                found=f"{spec.name} shall run on CPU {numbers}",
                want=f"CPUs that {machine} has: {ranges(there.cpus)}",
                fix="change cpu_affinity, its own or that of its class's pool",
            )
    yield from _users(fleet, specs, there)


def _users(fleet: Fleet, specs: Iterable[AgentSpec], there: Machine) -> Iterator[Misfit]:
    for spec in specs:
        if not spec.user or spec.id.slot:
            continue
        found = f"{spec.name} shall run as `{spec.user}`"
        if fleet.security == "curve":
            want = "no `user` where there are keys: the machine has one, and who can read it can speak as the whole machine"
            fix = "leave out `user`, or put the agent into a cluster of its own without keys, on loopback"
            yield Misfit(id=spec.id, is_user=True, found=found, want=want, fix=fix)
        elif problem := there.user_problem(spec.user):
            yield Misfit(id=spec.id, is_user=True, found=found, want="a user that it can have", fix=problem)


def this_machine() -> Machine:
    """CPUs that this process may use, and all memory that there is."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(frozenset(os.sched_getaffinity(0)), memory_bytes, user_problem)


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,8`."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, part)) for part in found)


def _by_size(specs: Iterable[AgentSpec]) -> list[tuple[int, AgentId]]:
    """Who requests how much, the most first; what is not enabled runs nowhere."""
    sizes = [(_requested(spec), spec.id) for spec in specs if spec.enabled]
    return sorted((pair for pair in sizes if pair[0]), key=lambda pair: -pair[0])


def _requested(spec: AgentSpec) -> int:
    resources = spec.resources
    return resources.memory_request_bytes or resources.memory_limit_bytes or 0


def _named(asked: list[tuple[int, AgentId]]) -> str:
    more = f" and {len(asked) - _NAMED} more" if len(asked) > _NAMED else ""
    return ", ".join(f"{id.instance} {_mib(size)}" for size, id in asked[:_NAMED]) + more


def _given(pool: PoolSpec, given: int) -> str:
    kept = f" ({_mib(pool.memory_bytes or 0)}, of which {_mib(pool.reserve_bytes)} are kept back)"
    return f"at most {_mib(given)}" + (kept if pool.reserve_bytes else "")


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // 2**20):,} MiB"
