"""When which fault befalls whom, worked out before anything is done: the same plan, seed and fleet give the same strikes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import Literal

from agentkit.names import AgentId
from startup.spec.chaos import ChaosPlan, Cut, Delay, Stop, Victim

#: More strikes than that are a slip of `every:`.
MAX_STRIKES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One fault. `machines`: whose nodes are told."""

    at_s: float
    verb: Literal["kill", "stop", "partition", "delay"]
    kind: Literal["agent", "node", "zygote", "link"]
    target: str  #: an agent's id, a machine, or two machines
    machines: tuple[str, ...]
    for_s: float = 0.0
    by_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:g} s" if self.for_s else ""
        late = f" by {self.by_s:g} s" if self.by_s else ""
        return f"{self.verb} {self.kind} {self.target}{late}{lasting}"


def strikes(plan: ChaosPlan, agents: Collection[AgentId], machines: Collection[str]) -> list[Strike]:
    """All of them, by time. ValueError: a pattern matches nothing that there is, or there are too many."""
    moments: list[tuple[float, int]] = []
    for number, fault in enumerate(plan.faults):
        when = fault.what[1]
        if when.every is None:
            moments.append((when.at or 0.0, number))
        else:
            count = int(plan.duration / when.every + 1e-9)
            if count > MAX_STRIKES:
                raise ValueError(
                    f"faults.{number}: {count:,} strikes within {plan.duration:g} s; at most {MAX_STRIKES:,}"
                )
            moments += [(when.every * (turn + 1), number) for turn in range(count)]
    moments.sort()
    random = Random(plan.seed)
    ids = {str(id): str(id.machine) for id in sorted(agents)}
    return [_strike(plan, at_s, number, random, ids, sorted(machines)) for at_s, number in moments]


def _strike(
    plan: ChaosPlan, at_s: float, number: int, random: Random, agents: Mapping[str, str], machines: Sequence[str]
) -> Strike:
    verb, fault = plan.faults[number].what
    place = f"faults.{number}.{verb}"
    if isinstance(fault, Cut):
        for machine in fault.between:
            if machine not in machines:
                raise ValueError(f"{place}.between: no machine {machine!r}; there are {', '.join(machines)}")
        by_s = fault.by_s if isinstance(fault, Delay) else 0.0
        return Strike(
            at_s=at_s, verb=verb, kind="link", target=" and ".join(fault.between), machines=tuple(fault.between),  # type: ignore[arg-type]
            for_s=fault.for_s, by_s=by_s,
        )  # fmt: skip
    assert isinstance(fault, Victim)
    for_s = fault.for_s if isinstance(fault, Stop) else 0.0
    known = list(agents) if fault.kind == "agent" else list(machines)
    matching = [it for it in known if _matches(it, fault.pattern)]
    if not matching:
        raise ValueError(
            f"{place}.{fault.kind}: {fault.pattern!r} matches none of {', '.join(known[:20]) or 'nothing'}"
        )
    target = random.choice(matching)
    machine = agents[target] if fault.kind == "agent" else target
    return Strike(at_s=at_s, verb=verb, kind=fault.kind, target=target, machines=(machine,), for_s=for_s)  # type: ignore[arg-type]


def _matches(name: str, pattern: str) -> bool:
    """`machine/name#slot` by all of it, or without machine, or without slot."""
    bare = name.partition("/")[2] or name
    return any(fnmatchcase(it, pattern) for it in (name, bare, name.partition("#")[0], bare.partition("#")[0]))
