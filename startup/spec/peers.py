"""`calls.to`: whether those exist whom it names, and their methods. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from startup.spec.fleet import AgentTarget
from startup.spec.members import Member
from startup.spec.problem import Problem, did_you_mean
from startup.spec.resolve import Resolved
from startup.spec.source import Table
from startup.spec.verdict import Order, Verdict

#: What is kept for each peer, so that it can't be another for one of its methods: (key, key inside; None: all of it).
_OF_PEERS = (("breaker", None), ("retry", "budget"), ("retry", "reserve"))


def called_methods(members: Collection[Member]) -> Mapping[str, set[str]]:
    """Agent -> its methods that anybody's `calls.to` names."""
    names = {member.entry.name for member in members}
    found: dict[str, set[str]] = defaultdict(set)
    for member in members:
        for written in member.settings.calls.to:
            agent, method = _meant(written, names)
            if agent and method:
                found[agent].add(method)
    return found


def peer_problems(resolved: Resolved, verdicts: Mapping[Order, Verdict]) -> Iterator[Problem]:
    """One for each name that is nobody's, each method that its class does not have, each key that has no meaning there."""
    methods = _methods(resolved, verdicts)
    defaults = resolved.settings.get("defaults")
    if isinstance(defaults, Table):
        yield from _of_one(defaults, "defaults", methods)
    for id, entry in resolved.entries.items():
        if id.slot:
            continue
        yield from _of_one(entry.keys, entry.at, methods)
        if not isinstance(resolved.specs[id].target, AgentTarget):
            for key in ("serve", "calls"):
                if key in entry.keys:
                    yield Problem(
                        severity="warning",
                        check="policy",
                        place=str(entry.place_of(key)),
                        at=f"{entry.at}.{key}",
                        found=f"`{key}` has no effect: {entry.name} is no BaseAgent",
                        fix="remove it",
                    )


def _methods(resolved: Resolved, verdicts: Mapping[Order, Verdict]) -> Mapping[str, frozenset[str] | None]:
    """Agent -> the methods of its class, of all classes that bear the name; None: not known."""
    found: dict[str, frozenset[str] | None] = {}
    for spec in resolved.fleet.agents:
        order = resolved.orders.get(spec.id)
        verdict = verdicts.get(order) if order is not None else None
        own = frozenset(verdict.methods) if verdict is not None and verdict.kind == "agent" else None
        before = found.get(spec.name, frozenset())
        found[spec.name] = None if own is None or before is None else own | before
    return found


def _of_one(keys: Table, at: str, methods: Mapping[str, frozenset[str] | None]) -> Iterator[Problem]:
    calls = keys.get("calls")
    to = calls.get("to") if isinstance(calls, Table) else None
    if not isinstance(to, Table):
        return
    for written, said in to.items():
        where = str(keys.place_of("calls", "to", written))
        agent, method = _meant(written, methods)
        spot = f"{at}.calls.to.{written}"
        if agent is None:
            near = did_you_mean(written.partition(".")[0], methods)
            yield Problem(
                check="policy", place=where, at=spot, found=f"`{written}`, which nobody here is called",
                want="an agent of this fleet, or AGENT.METHOD", fix=near,
            )  # fmt: skip
            continue
        known = methods[agent]
        if method and known is not None and method not in known:
            yield Problem(
                check="policy", place=where, at=spot, found=f"`{method}`", want=f"a method of {agent}",
                fix=did_you_mean(method, known) or f"it has {', '.join(sorted(known)) or 'none'}",
            )  # fmt: skip
        for key, inner in _OF_PEERS if method and isinstance(said, Table) else ():
            table = said.get(key)
            if key in said and (inner is None or (isinstance(table, Table) and inner in table)):
                dotted = key if inner is None else f"{key}.{inner}"
                yield Problem(
                    check="policy", place=str(said.place_of(key)), at=f"{spot}.{dotted}",
                    found=f"`{dotted}` of one method", want=f"it below `{agent}`: there is one for all calls to a peer",
                )  # fmt: skip


def _meant(written: str, names: Collection[str]) -> tuple[str | None, str]:
    """The agent, and the method or "": an agent's name may hold dots itself."""
    name = written.rpartition("/")[2].partition("#")[0]
    if name in names:
        return name, ""
    agent, _, method = name.rpartition(".")
    return (agent, method) if agent in names else (None, "")
