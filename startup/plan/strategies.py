"""Who is restarted with an agent that failed: the `restart_strategies` of groups. Pure.

- `one` (what a group has that says nothing): nobody.
- `rest-for-one`: those of its group that depend on it, directly or through others, whichever groups those are of.
- `all`: everybody of its group.

A companion is stopped and comes again by the ordinary rules, so what it depends on is up before it. That is no failure: it costs
nothing of its restart budget and concerns nobody further, so that a loop can't arise.
"""

from __future__ import annotations

from agentkit.names import AgentId
from startup.plan.desired import Desired


def companions(failed: AgentId, desired: Desired) -> tuple[AgentId, ...]:
    """The others that its restart takes along, in file order."""
    match strategy_of(failed, desired):
        case "all":
            chosen = None
        case "rest-for-one":
            chosen = _above(failed, desired)
        case _:
            return ()
    group = desired.specs[failed].group
    return tuple(
        id
        for id, spec in desired.specs.items()
        if spec.group == group and id != failed and (chosen is None or id in chosen)
    )


def strategy_of(id: AgentId, desired: Desired) -> str:
    """That of its group."""
    spec, revision = desired.specs.get(id), desired.revision
    if spec is None or revision is None:
        return "one"
    return revision.fleet.restart_strategies.get(spec.group, "one")


def cause(failed: AgentId, desired: Desired) -> str:
    """What a companion is restarted for, in words: `with A (rest-for-one)`."""
    return f"with {failed.instance} ({strategy_of(failed, desired)})"


def _above(id: AgentId, desired: Desired) -> set[AgentId]:
    reached: set[AgentId] = set()
    unvisited = [id]
    while unvisited:
        more = set(desired.dependants.get(unvisited.pop(), ())) - reached
        reached |= more
        unvisited += more
    return reached
