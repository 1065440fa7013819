"""What `doctor` finds of a fleet's other machines, as seen from this one: address, node, the way commands take, clock, keys."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agentkit.errors import AgentkitError, ConfigError, NoNode
from startup.cli.fitness import Finding
from startup.view.words import duration

if TYPE_CHECKING:
    from startup.control import Door
    from startup.spec.fleet import Fleet, MachineSpec

#: Clocks of machines may differ by so much, in seconds, before people who compare times are misled.
CLOCKS_DIFFER_S: Final = 1.0
_ANSWERS_WITHIN_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """What was found of one other machine."""

    name: str
    host: str
    node_port: int | None
    resolves: bool
    silent: str | None = None  #: why nobody takes a connection where nodes meet; None: somebody does
    way: str = ""  #: how commands reach its node, or log in there; "": not at all
    trouble: str = ""  #: why they do not
    has_node: bool = False
    clock_s: float | None = None  #: how far its clock is ahead of ours; None: nobody there told


def examine(fleet: Fleet, machines: Collection[MachineSpec]) -> list[Finding]:
    """Of `machines`, which are other hosts. Takes as long as the slowest of them; a machine that is off: 20 s at most."""
    return [finding for neighbour in gather(fleet, machines) for finding in judge(neighbour)] + list(keys(fleet))


def gather(fleet: Fleet, machines: Collection[MachineSpec]) -> list[Neighbour]:
    """Asks the network; changes nothing there."""
    from startup.cli.by_key import ANSWERS_WITHIN_S, unanswered
    from startup.cli.elsewhere import Elsewhere

    ports = {str(it.name): (it.host, it.node_port) for it in machines if it.node_port is not None}
    silent = unanswered(ports, ANSWERS_WITHIN_S)
    with ExitStack() as stack:
        others = Elsewhere(stack, fleet.cluster, machines)
        others.begin_find()
        found = others.finish(tell=lambda _: None)
        neighbours = []
        for machine in machines:
            name = str(machine.name)
            door = found.doors.get(name)
            trouble = str(found.troubles.get(name, ""))
            neighbours.append(
                Neighbour(
                    name=name,
                    host=machine.host,
                    node_port=machine.node_port,
                    resolves=_resolves(machine.host),
                    silent=silent.get(name),
                    way="" if trouble else door.place if door is not None else "SSH",
                    trouble=trouble,
                    has_node=door is not None,
                    clock_s=_clock(door) if door is not None else None,
                )
            )
        return neighbours


def judge(it: Neighbour) -> Iterator[Finding]:
    """Pure: one finding for each question."""
    yield _finding(
        f"{it.name}: address",
        it.resolves,
        it.host,
        "resolves",
        f"give it a line in /etc/hosts, or set machines.{it.name}.host",
    )
    if it.node_port is None:
        fix = f"set machines.{it.name}.node_port: other machines do not find a node whose port the kernel chose"
        yield _finding(f"{it.name}: node port", False, "not set", "set", fix)
    elif it.has_node or it.silent is None:
        fix = f"open TCP port {it.node_port} between the machines (firewall), and see node.log there"
        value = f"{it.host}:{it.node_port} answers" if it.silent is None else f"its node runs, but {it.silent}"
        yield _finding(f"{it.name}: node port", it.silent is None, value, "takes connections", fix)
    else:
        fix = "none is needed before `agentkit up`"
        yield Finding(name=f"{it.name}: node port", verdict="warn", value=it.silent, need="takes connections", fix=fix)
    value = it.trouble or f"{it.way}{'' if it.has_node else '; no node runs there'}"
    fix = "what the message says; `agentkit up` and the commands that change something need it"
    yield _finding(f"{it.name}: way there", not it.trouble, value, "operator's key, or SSH", fix)
    if it.clock_s is not None:
        value = f"{duration(abs(it.clock_s))} {'ahead' if it.clock_s > 0 else 'behind'}"
        good = abs(it.clock_s) < CLOCKS_DIFFER_S
        yield Finding(
            name=f"{it.name}: clock",
            verdict="ok" if good else "warn",
            value=value,
            need=f"within {CLOCKS_DIFFER_S:g} s of this machine's",
            fix=""
            if good
            else "run chrony or systemd-timesyncd on both: times of logs and reports are each machine's own",
        )


def keys(fleet: Fleet) -> Iterator[Finding]:
    """Whether this machine's part of the cluster's keys is there and private."""
    if fleet.security != "curve":
        return
    from agentkit.security.folder import KeyFolder, folder_of
    from startup.cli.elsewhere import keys_of

    folder = KeyFolder(folder_of(keys_of(fleet)))
    try:
        known = folder.load()
    except ConfigError as exc:
        yield _finding("cluster keys", False, str(exc), "readable by the owner only", "`agentkit keys`")
        return
    without = [str(it.name) for it in fleet.machines if not known.of(str(it.name))]
    value = f"{len(known.keys)} in {folder.path}" if not without else f"none of {', '.join(without)} in {folder.path}"
    yield _finding(
        "cluster keys", not without, value, "a key of every machine", f"`agentkit keys add {' '.join(without)}`"
    )


def _finding(name: str, good: bool, value: str, need: str, fix: str) -> Finding:
    return Finding(name=name, verdict="ok" if good else "fail", value=value, need=need, fix="" if good else fix)


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _clock(door: Door) -> float | None:
    """True to half of what the question takes."""
    try:
        with closing(door.open(timeout_s=_ANSWERS_WITHIN_S)) as talk:
            begun_s = time.time()
            there_s = talk.ask("ping").get("time_s")
            return None if there_s is None else float(there_s) - (begun_s + time.time()) / 2
    except (NoNode, AgentkitError, TimeoutError):
        return None
