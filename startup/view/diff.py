"""What a new revision changes on a running cluster. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from agentkit.names import AgentId
from startup.plan.phase import Phase
from startup.plan.row import AgentRow
from startup.spec.fleet import Fleet
from startup.view.words import listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Ids in file order; an agent is in one of them at most."""

    added: tuple[AgentId, ...] = ()
    removed: tuple[AgentId, ...] = ()
    changed: tuple[AgentId, ...] = ()  #: restarted, as a running process can't follow the change
    resumed: tuple[AgentId, ...] = ()  #: were stopped by an operator
    retried: tuple[AgentId, ...] = ()  #: had failed
    unchanged: tuple[AgentId, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.resumed or self.retried)


def difference(
    old: Fleet,
    old_stopped: Collection[AgentId],
    new: Fleet,
    new_stopped: Collection[AgentId],
    rows: Mapping[AgentId, AgentRow],
) -> Diff:
    """From what runs to what shall run; `rows` tell who has failed."""
    before = {spec.id: spec for spec in old.agents}
    after = {spec.id: spec for spec in new.agents}
    found: dict[str, list[AgentId]] = {name: [] for name in ("added", "changed", "resumed", "retried", "unchanged")}
    for id, spec in after.items():
        if id in new_stopped or not spec.enabled:
            continue
        if id not in before:
            found["added"].append(id)
        elif id in old_stopped or not before[id].enabled:
            found["resumed"].append(id)
        elif spec.digest() != before[id].digest():
            found["changed"].append(id)
        elif id in rows and rows[id].phase in (Phase.FAILED, Phase.BACKOFF):
            found["retried"].append(id)
        else:
            found["unchanged"].append(id)
    removed = tuple(id for id in before if id not in after)
    return Diff(removed=removed, **{name: tuple(ids) for name, ids in found.items()})


def diff_lines(diff: Diff) -> Iterator[str]:
    """For an operator, a line per kind."""
    for word, ids in (
        ("changed", diff.changed),
        ("added", diff.added),
        ("removed", diff.removed),
        ("started again", diff.resumed),
        ("tried again", diff.retried),
    ):
        if ids:
            yield f"{word}: {listing(map(str, ids), 12)}"
    if diff:
        if diff.unchanged:
            yield f"unchanged: {len(diff.unchanged)}"
    else:
        yield f"nothing changes: {len(diff.unchanged)} agents stay as they are"
