"""What keeps one agent from starting, and what is wrong with its dependencies once it runs. Pure; looks, never changes.

A *required* dependency is fulfilled when any one of its agents meets the condition. It is hopeless, and its
dependant skipped, when each of them failed, is skipped, unreachable or not wanted; the root cause is carried along and
the skip is undone as soon as one of them has hope again.

An *optional* dependency is waited for only while it is on its way up, and no longer than its own start timeout counted
from when the dependant was wanted: it improves the order of a whole fleet's start and can't stop anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from agentkit.names import AgentId
from startup.plan.desired import Desired
from startup.plan.phase import COMING_UP, UP, Phase
from startup.spec.fleet import AgentSpec, Condition, Dependency

_FULFILS: Final[dict[Condition, frozenset[Phase]]] = {
    "healthy": UP,
    "started": UP | COMING_UP | {Phase.DRAINING},
    "completed": frozenset({Phase.COMPLETED}),
}
#: Nothing of these comes up by waiting a little.
_HOPELESS: Final = frozenset({Phase.FAILED, Phase.SKIPPED, Phase.UNREACHABLE})
#: An optional dependency is waited for in these.
_ON_ITS_WAY: Final = COMING_UP | {Phase.PENDING, Phase.WAITING}


class Seen(Protocol):
    """What is known of any agent of the cluster: a Process or an AgentRow."""

    @property
    def phase(self) -> Phase: ...
    @property
    def because(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def away(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Blockers:
    """Why an agent does not start now. Neither `waiting_for` nor `because`: it may start."""

    waiting_for: tuple[str, ...] = ()
    because: str = ""  #: the agent at the root of it: waiting does not help
    reason: str = ""
    recheck_s: float | None = None  #: when the wait for an optional dependency ends
    externals: tuple[str, ...] = ()  #: those of `waiting_for` that must be probed


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as one node sees it."""

    desired: Desired
    see: Callable[[AgentId], Seen]
    external_is_up: Callable[[str], bool]


def blockers(
    spec: AgentSpec, view: View, *, wanted_s: float, now_s: float, gate: Iterable[AgentId], phase: str
) -> Blockers:
    """`gate`: agents of earlier phases that are not up yet; `phase`: what to call that barrier."""
    waiting: list[str] = []
    externals: list[str] = []
    recheck_s: float | None = None
    for dependency in spec.dependencies:
        if dependency.external is not None:
            if dependency.required and not view.external_is_up(dependency.external):
                waiting.append(dependency.name)
                externals.append(dependency.external)
        elif _is_fulfilled(dependency, view):
            continue
        elif dependency.required:
            if cause := hopeless(dependency, view):
                return Blockers(because=cause[0], reason=cause[1])
            waiting.append(dependency.name)
        else:
            until_s = _optional_until_s(dependency, view, wanted_s)
            if until_s is not None and until_s > now_s:
                waiting.append(dependency.name)
                recheck_s = until_s if recheck_s is None else min(recheck_s, until_s)
    gated = False
    for id in gate:
        if _lost(id, view):
            return Blockers(because=_root(id, view), reason=f"phase {phase}: {_why_lost(id, view)}")
        gated = True
    if gated:
        waiting.append(f"phase {phase}")
    return Blockers(tuple(waiting), recheck_s=recheck_s, externals=tuple(externals))


def hopeless(dependency: Dependency, view: View) -> tuple[str, str] | None:
    """Root cause and reason when no agent of `dependency` can fulfil it without help, else None."""
    if not dependency.agents:
        return dependency.name, f"there is no {dependency.name}"
    if not all(_lost(id, view) for id in dependency.agents):
        return None
    first = dependency.agents[0]
    return _root(first, view), _why_lost(first, view)


def trouble(spec: AgentSpec, view: View) -> str:
    """Why a ready agent is only degraded: its required dependencies that are gone for good, or about to come again. Does not
    spread upward. One that is replaced while it serves is neither."""
    return "; ".join(
        cause
        for dependency in spec.dependencies
        if dependency.required and dependency.external is None and dependency.condition != "completed"
        if not _is_fulfilled(dependency, view)
        if (cause := _lacks(dependency, view))
    )


def _lacks(dependency: Dependency, view: View) -> str:
    if found := hopeless(dependency, view):
        return found[1]
    for id in dependency.agents:
        if away := view.see(id).away:
            return f"{id.instance} restarting: {away}"
    return ""


def _is_fulfilled(dependency: Dependency, view: View) -> bool:
    good = _FULFILS[dependency.condition]
    return any(view.see(id).phase in good and view.desired.wants(id) for id in dependency.agents)


def _lost(id: AgentId, view: View) -> bool:
    return not view.desired.wants(id) or view.see(id).phase in _HOPELESS


def _root(id: AgentId, view: View) -> str:
    return view.see(id).because or str(id)


def _why_lost(id: AgentId, view: View) -> str:
    if why_not := view.desired.why_not(id):
        return f"{id.instance} {why_not}"
    seen = view.see(id)
    if seen.phase is Phase.UNREACHABLE:
        return f"{id.instance} unreachable: its machine {id.machine} does not answer"
    if seen.phase is Phase.SKIPPED:
        return seen.reason
    return f"{id.instance} failed: {seen.reason}" if seen.reason else f"{id.instance} failed"


def _optional_until_s(dependency: Dependency, view: View, wanted_s: float) -> float | None:
    """Until when an optional dependency is worth waiting for; None: not at all."""
    on_their_way = [id for id in dependency.agents if view.desired.wants(id) and view.see(id).phase in _ON_ITS_WAY]
    if not on_their_way:
        return None
    return wanted_s + max(view.desired.specs[id].start_timeout_s for id in on_their_way)
