"""Ports that somebody has taken on this machine right now, and who (Linux: /proc)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from startup.spec.hosts import LOOPBACK
from startup.spec.ports import Claim
from startup.spec.problem import Problem

#: More ports than this held by one process are one problem, not many.
MANY: Final = 3

_LISTENING: Final = "0A"
_SOMEBODY: Final = "a process of another user"
_NODE_TITLE: Final = "agentkit: node "
#: Addresses that a bind to 127.0.0.1 collides with, as /proc/net writes them.
_COLLIDING: Final = frozenset(
    {
        "0100007F",  # 127.0.0.1
        "00000000",  # 0.0.0.0
        "0" * 32,  # ::
        "0000000000000000FFFF00000100007F",  # ::ffff:127.0.0.1
    }
)


@dataclass(frozen=True, slots=True)
class Owner:
    pid: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})"


def taken_problems(
    claims: Iterable[Claim], *, own_pids: Collection[int] = (), own_ports: Collection[int] = ()
) -> Iterator[Problem]:
    """One per port of this machine that a stranger listens on; one in all for a stranger that holds many (another fleet).

    Ours: the running cluster's node, zygote and agents."""
    wanted = {
        claim.port: claim for claim in claims if claim.host == LOOPBACK and claim.binds and claim.port not in own_ports
    }
    inodes = {inode: port for inode, port in listening().items() if port in wanted}
    owners = _owners(frozenset(inodes)) if inodes else {}
    taken: dict[Owner | None, list[Claim]] = {}
    for port, claim in sorted(wanted.items()):
        mine = [inode for inode, number in inodes.items() if number == port]
        if not mine:
            continue
        known = [owner for inode in mine for owner in owners.get(inode, ())]
        if any(owner.pid in own_pids for owner in known):
            continue
        taken.setdefault(known[0] if known else None, []).append(claim)
    for owner, claims_of in taken.items():
        if len(claims_of) > MANY:
            yield _many_taken(owner, claims_of)
        else:
            yield from (_one_taken(owner, claim) for claim in claims_of)


def _one_taken(owner: Owner | None, claim: Claim) -> Problem:
    return Problem(
        check="port-taken",
        place=str(claim.place or ""),
        at=claim.at,
        found=f"port {claim.port}, {claim}, is taken now by {owner or _SOMEBODY}",
        want="a free port",
        fix=f"end it (kill {owner.pid}), or change the port" if owner else "change the port",
    )


def _many_taken(owner: Owner | None, claims: list[Claim]) -> Problem:
    first = ", ".join(f"{claim.port} ({claim})" for claim in claims[:3])
    cluster = (
        owner.command.removeprefix(_NODE_TITLE).partition("/")[0] if owner and _NODE_TITLE in owner.command else ""
    )
    ending = f"agentkit down --cluster {cluster}" if cluster else f"kill {owner.pid}" if owner else ""
    return Problem(
        check="port-taken",
        place=str(claims[0].place or ""),
        at=claims[0].at,
        found=f"{len(claims)} ports are taken now by {owner or _SOMEBODY}: {first}, ...",
        want="free ports",
        fix=f"end it ({ending}), or move this fleet with --port-offset N"
        if ending
        else "move this fleet with --port-offset N",
    )


def listening(proc: Path = Path("/proc/net")) -> dict[int, int]:
    """Inode -> port of every TCP socket that listens where an agent would bind."""
    found: dict[int, int] = {}
    for name in ("tcp", "tcp6"):
        try:
            rows = (proc / name).read_text().splitlines()[1:]
        except OSError:
            continue  # a kernel without IPv6
        for row in rows:
            columns = row.split()
            address, _, port = columns[1].partition(":")
            if columns[3] == _LISTENING and address in _COLLIDING:
                found[int(columns[9])] = int(port, 16)
    return found


def _owners(inodes: frozenset[int]) -> dict[int, list[Owner]]:
    """Inode -> processes that hold it, as far as we may look."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[Owner]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            names = os.listdir(process / "fd")  # noqa: PTH208  half the time of iterdir, and there may be 1,000 processes
        except OSError:
            continue  # it ended, or belongs to somebody else
        held = {links[link] for name in names if (link := _link(f"{process}/fd/{name}")) in links}
        for inode in held:
            found.setdefault(inode, []).append(Owner(int(process.name), _command(process)))
    return found


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return "ended just now"
    text = b" ".join(words).decode(errors="replace")
    return text if len(text) <= 60 else text[:57] + "..."
