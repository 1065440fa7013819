"""What can be wrong with the ports of a fleet that was resolved: one taken twice, forbidden, too high, out of its class's range."""

from __future__ import annotations

from collections.abc import Iterator

from startup.spec.members import GATEWAY
from startup.spec.ports import HIGHEST_PORT, Claim, PortBook
from startup.spec.problem import Problem
from startup.spec.resolve import Resolved
from startup.spec.units import PortRange


def port_problems(resolved: Resolved) -> Iterator[Problem]:
    """Each with a port that is free instead, where there is one."""
    live = [claim for claim in resolved.claims if _is_live(resolved, claim)]
    book = PortBook(live, never=resolved.file.forbidden_ports)
    for first, later in book.clashes():
        wanted = resolved.ranges.get(_class_of(resolved, later) or "")
        if not later.binds and _depends_on(resolved, later, first):
            continue
        yield Problem(
            severity="error" if later.binds else "warning",
            check="port-clash",
            place=str(later.place or ""),
            at=later.at,
            found=f"port {later.port} is the {first} too ({first.place}), on {later.host}",
            want="a port of its own"
            if later.binds
            else f"{first.owner} among the dependencies, if that is who is meant",
            fix=_instead(book, later, wanted) if later.binds else "",
        )
    for claim in live:
        yield from _one_port(resolved, claim, book)


def _is_live(resolved: Resolved, claim: Claim) -> bool:
    return isinstance(claim.owner, str) or resolved.specs[claim.owner].enabled


def _class_of(resolved: Resolved, claim: Claim) -> str | None:
    return None if isinstance(claim.owner, str) else resolved.specs[claim.owner].klass


def _depends_on(resolved: Resolved, later: Claim, first: Claim) -> bool:
    if isinstance(later.owner, str):
        return False
    edges = resolved.specs[later.owner].dependencies
    return any(first.owner in edge.agents for edge in edges)


def _one_port(resolved: Resolved, claim: Claim, book: PortBook) -> Iterator[Problem]:
    place, klass = str(claim.place or ""), _class_of(resolved, claim)
    wanted = resolved.ranges.get(klass or "")
    if claim.port > HIGHEST_PORT:
        found = f"port {claim.port}, {claim}"
        yield Problem(
            check="port-too-high",
            place=place,
            at=claim.at,
            found=found,
            want="at most 65535",
            fix="lower it, or the offset",
        )
    elif not claim.binds:
        return
    elif claim.port in resolved.file.forbidden_ports and klass != GATEWAY:
        fix = _instead(book, claim, wanted)
        want = "another port: browsers and proxies expect a web server there; only class `gateway` may use it"
        yield Problem(
            check="port-forbidden", place=place, at=claim.at, found=f"port {claim.port}, {claim}", want=want, fix=fix
        )
    elif claim.from_config or isinstance(claim.owner, str) or wanted is None or wanted.has(claim.port):
        return
    elif _class_is_explicit(resolved, claim):
        found = f"port {claim.port}, {claim}, out of the range of class `{klass}`"
        fix = _instead(book, claim, wanted)
        yield Problem(check="port-range", place=place, at=claim.at, found=found, want=f"{wanted}", fix=fix)


def _instead(book: PortBook, claim: Claim, wanted: PortRange | None) -> str:
    free = book.free_instead(claim, wanted)
    return f"{free} is free" if free else ""


def _class_is_explicit(resolved: Resolved, claim: Claim) -> bool:
    if isinstance(claim.owner, str):
        return False
    entry = resolved.entries[claim.owner]
    return not entry.older and (
        "class" in entry.keys or entry.group_class is not None or resolved.file.defaults.class_ is not None
    )
