"""What one revision changes of another: who comes, goes, moves, is replaced, and by which keys. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentkit.names import AgentId
from startup.plan.keys import KeyChange, agent_keys, fleet_keys
from startup.plan.revision import Revision
from startup.spec.fleet import AgentSpec
from startup.spec.scale import slots_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """An agent that is in both; `is_replaced`: its process does not go on, unless it takes the new config `in_place`.

    `runs`: it shall in both; else its new entry counts from its next start on."""

    id: AgentId
    keys: tuple[KeyChange, ...]
    is_replaced: bool = True
    in_place: bool = False
    runs: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The same slot on another machine."""

    old: AgentId
    new: AgentId
    keys: tuple[KeyChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled:
    """Another number of slots. `was_scaled`, `is_scaled`: an operator's number and not the file's."""

    agent: str  #: machine/name
    old: int
    new: int
    was_scaled: bool = False
    is_scaled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Everything that differs; ids in file order. Slots that come or go by a number of replicas are in `added` and `removed`, too."""

    added: tuple[AgentId, ...] = ()
    resting: tuple[AgentId, ...] = ()  #: of `added`: disabled, or left out by the command
    removed: tuple[AgentId, ...] = ()
    moved: tuple[Moved, ...] = ()
    changed: tuple[Changed, ...] = ()
    rescaled: tuple[Rescaled, ...] = ()
    started: tuple[AgentId, ...] = ()  #: were stopped by an operator, or never started
    retried: tuple[AgentId, ...] = ()  #: nothing differs, but they had failed
    stopped: tuple[AgentId, ...] = ()
    fleet: tuple[KeyChange, ...] = ()
    unchanged: int = 0

    def __bool__(self) -> bool:
        return any(
            (
                *(self.added, self.removed, self.moved, self.changed, self.rescaled),
                *(self.started, self.stopped, self.retried, self.fleet),
            )
        )

    @property
    def replaced(self) -> tuple[AgentId, ...]:
        return tuple(it.id for it in self.changed if it.is_replaced)

    def to_wire(self) -> dict[str, Any]:
        return {
            "added": [str(id) for id in self.added],
            "resting": [str(id) for id in self.resting],
            "removed": [str(id) for id in self.removed],
            "moved": [{"from": str(it.old), "to": str(it.new), "keys": _wired(it.keys)} for it in self.moved],
            "changed": [
                {"agent": str(it.id), "replaced": it.is_replaced, "in_place": it.in_place, "keys": _wired(it.keys)}
                for it in self.changed
            ],
            "replicas": [
                {
                    "agent": it.agent,
                    "old": it.old,
                    "new": it.new,
                    "was_scaled": it.was_scaled,
                    "is_scaled": it.is_scaled,
                }
                for it in self.rescaled
            ],
            "started": [str(id) for id in self.started],
            "stopped": [str(id) for id in self.stopped],
            "retried": [str(id) for id in self.retried],
            "fleet": _wired(self.fleet),
            "unchanged": self.unchanged,
        }


def changes(
    old: Revision, new: Revision, takes_config: Collection[AgentId] = (), failed: Collection[AgentId] = ()
) -> Changes:
    """From `old` to `new`, whatever numbers they have. `takes_config`: agents that take another config without a restart;
    `failed`: those that have failed, and are tried again."""
    before = {spec.id: spec for spec in old.fleet.agents}
    after = {spec.id: spec for spec in new.fleet.agents}
    moved = _moved(before, after)
    came, went = {it.new for it in moved}, {it.old for it in moved}
    both = [(before[id], after[id]) for id in after if id in before]
    ran, runs = _running(old), _running(new)
    changed = tuple(it for pair in both if (it := _changed(*pair, ran & runs, takes_config)) is not None)
    started = tuple(id for id in after if id in before and id in old.stopped and id not in new.stopped)
    stopped = tuple(id for id in after if id in before and id in new.stopped and id not in old.stopped)
    touched = {it.id for it in changed}.union(started, stopped)
    retried = tuple(id for id in after if id in before and id in failed and id in runs and id not in touched)
    added = tuple(id for id in after if id not in before and id not in came)
    return Changes(
        added=added,
        resting=tuple(id for id in added if id not in runs),
        removed=tuple(id for id in before if id not in after and id not in went),
        moved=moved,
        changed=changed,
        rescaled=_rescaled(old, new),
        started=started,
        stopped=stopped,
        retried=retried,
        fleet=fleet_keys(old.fleet, new.fleet),
        unchanged=len(both) - len(touched) - len(retried),
    )


def counts(ids: Iterable[AgentId]) -> dict[str, int]:
    """machine/name -> number of slots."""
    found: dict[str, int] = {}
    for id in ids:
        found[slots_of(id)] = found.get(slots_of(id), 0) + 1
    return found


def _running(revision: Revision) -> frozenset[AgentId]:
    return frozenset(spec.id for spec in revision.fleet.agents if spec.enabled) - revision.stopped


def _changed(
    old: AgentSpec, new: AgentSpec, running: Collection[AgentId], takes_config: Collection[AgentId]
) -> Changed | None:
    if old == new:
        return None
    keys = agent_keys(old, new)
    differs, runs = old.digest() != new.digest(), new.id in running
    if not keys and not differs:
        return None
    is_replaced = differs and runs
    in_place = is_replaced and new.id in takes_config and old.base_digest() == new.base_digest()
    return Changed(id=new.id, keys=keys, is_replaced=is_replaced, in_place=in_place, runs=runs)


def _moved(before: Mapping[AgentId, AgentSpec], after: Mapping[AgentId, AgentSpec]) -> tuple[Moved, ...]:
    gone = {(id.name, id.slot): id for id in before if id not in after}
    return tuple(
        Moved(old=old, new=id, keys=agent_keys(before[old], spec))
        for id, spec in after.items()
        if id not in before and (old := gone.get((id.name, id.slot))) is not None and old.machine != id.machine
    )


def _rescaled(old: Revision, new: Revision) -> tuple[Rescaled, ...]:
    """Agents that are in both with another number of slots."""
    before, after = counts(old.fleet.ids()), counts(new.fleet.ids())
    return tuple(
        Rescaled(
            agent=agent, old=before[agent], new=number, was_scaled=agent in old.scaled, is_scaled=agent in new.scaled
        )
        for agent, number in after.items()
        if agent in before and before[agent] != number
    )


def _wired(keys: Iterable[KeyChange]) -> list[dict[str, Any]]:
    return [key.to_wire() for key in keys]
