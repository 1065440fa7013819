"""Stop everything, on every machine, nodes included; returns when nothing is left.

Agents stop in reverse order of their dependencies and get their grace period, then SIGKILL. What a killed node left behind is
found by its run directory and ended, too. Exit 0 also when nothing ran.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, Final

from agentkit.directory.locate import NodeInfo, default_cluster, node_files, run_root, running_nodes
from agentkit.errors import NoNode
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import duration_s, is_terminal, note, say, say_json
from startup.cli.elsewhere import Elsewhere, elsewhere, known_machines
from startup.cli.watch import Watch
from startup.control import ANSWER_WITHIN_S, Door
from startup.errors import Conflict, NodeLost
from startup.machines import orphans
from startup.machines.waits import DOWN_WITHIN_S
from startup.node.paths import Places
from startup.plan.phase import ALIVE
from startup.view.words import count, duration

#: Other commands may come in between: the latest wins, and that is this one.
_TRIES: Final = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=duration_s,
        default=DOWN_WITHIN_S,
        metavar="TIME",
        help="then what is left is killed (default 2m)",
    )


def run(arguments: argparse.Namespace) -> int:
    """0 when nothing is left."""
    began_s = time.monotonic()
    with ExitStack() as stack:
        return _run(arguments, stack, began_s)


def _run(arguments: argparse.Namespace, stack: ExitStack, began_s: float) -> int:
    name, found = _target(arguments.cluster)
    far = elsewhere(known_machines(name)) if name else []
    others = Elsewhere(stack, name or "", far)
    others.begin_find()
    reached = others.finish()
    if name is None or not (found or reached.doors or reached.troubles):
        if arguments.json:
            say_json({"cluster": arguments.cluster, "elapsed_s": 0.0, "machines": [], "agents": 0, "killed": []})
        else:
            say(f"nothing runs{f' of cluster {arguments.cluster}' if arguments.cluster else ''}")
        return exits.DONE
    agents, killed = _ask_nodes(name, reached.doors, arguments.timeout)
    ended = others.clean()
    for info in found:
        places = Places.of(info.cluster, info.machine)
        killed += orphans.end(places)
        orphans.forget(places)
    killed += [pid for pids in ended.values() for pid in pids]
    elapsed_s = time.monotonic() - began_s
    machines = sorted({info.machine for info in found} | ended.keys())
    left_alone = sorted(reached.troubles.keys() | (reached.doors.keys() - ended.keys()))
    if arguments.json:
        facts: Mapping[str, Any] = {"machines": machines, "agents": agents, "killed": killed, "unreached": left_alone}
        say_json({"cluster": name, "elapsed_s": round(elapsed_s, 3), **facts})
    else:
        left = f"; ended {count(len(killed), 'process')} that a dead node had left" if killed else ""
        say(
            f"{name} is down: {count(agents, 'agent')} on {count(len(machines), 'machine')} stopped in {duration(elapsed_s)}{left}"
        )
    for machine in left_alone:
        again = f"`agentkit down --cluster {name}`"
        note(f"agentkit: what runs on {machine} may run on: {again} again when it is reachable, or there")
    return exits.FAILED if left_alone else exits.DONE


def _target(wanted: str | None) -> tuple[str | None, tuple[NodeInfo, ...]]:
    """The cluster meant and its machines, dead nodes included; (None, ()) when there is nothing. NoNode: which one is unclear."""
    from pathlib import Path

    files = tuple(node_files(run_root()))
    clusters = {info.cluster for info in files}
    if wanted is None and (path := os.environ.get("AGENTKIT_NODE")):
        wanted = Path(path).parent.parent.name
    default = default_cluster(Path.cwd())
    if not files:
        return wanted or default, ()
    alive = {info.cluster for info in running_nodes()}
    name = wanted or (default if default in clusters else None)
    for candidates in (alive, clusters):
        if name is None and len(candidates) == 1:
            (name,) = candidates
    if name is None and clusters:
        raise NoNode(f"several clusters run here ({', '.join(sorted(clusters))}); choose one with --cluster NAME")
    found = tuple(info for info in files if info.cluster == name)
    return (name, found) if found or wanted else (None, ())


def _ask_nodes(name: str, doors: Mapping[str, Door], timeout_s: float) -> tuple[int, list[int]]:
    """Tell every node that answers to go down, and wait until their processes have gone; how many agents ran, and the pids
    of what had to be killed. `doors`: to nodes on other hosts."""
    try:
        cluster = Cluster.of(name, doors=doors, answer_within_s=min(ANSWER_WITHIN_S, timeout_s))
    except NoNode:
        return 0, []
    with cluster:
        killed = _end_stuck(cluster, timeout_s)
        if not cluster.connections:
            return 0, killed
        answers, rows = cluster.status()
        pids = {
            int(answer["node"][key])
            for answer in answers
            for key in ("pid", "zygote_pid")
            if answer["machine"] in cluster.here and answer["node"].get(key)
        }
        agents = sum(row.phase in ALIVE for row in rows)
        _tell(cluster)
        with suppress(NoNode, NodeLost):
            _show(cluster, agents)
        ends_s = time.monotonic() + timeout_s
        left = orphans.wait_gone(pids, timeout_s)
        _wait_elsewhere({it: door for it, door in cluster.doors.items() if it not in cluster.here}, ends_s)
    if left:
        note(
            f"agentkit: after {duration(timeout_s)} these still run and are killed: {', '.join(map(str, sorted(left)))}"
        )
    return agents, killed


def _end_stuck(cluster: Cluster, timeout_s: float) -> list[int]:
    """Nodes that listen and do not answer (stopped, or their loop hangs) are killed with all that is theirs; the pids."""
    killed: list[int] = []
    for machine, connection in list(cluster.connections.items()):
        try:
            connection.ask("ping")
        except NodeLost:
            pass  # it is going already
        except TimeoutError:
            note(f"agentkit: the node of {machine} does not answer: it is killed, and its agents stop without order")
            connection.close()
            del cluster.connections[machine]
            if machine not in cluster.here:
                continue  # `clean` does it there
            killed += orphans.end(Places.of(cluster.name, machine), grace_s=min(orphans.GRACE_S, timeout_s))
    return killed


def _wait_elsewhere(doors: Mapping[str, Door], ends_s: float) -> None:
    """Until the nodes behind these doors have closed them, or it is late."""
    if not doors:
        return
    with suppress(NoNode, NodeLost), Watch(doors) as watch:
        while len(watch.lost) < len(doors) and (left_s := ends_s - time.monotonic()) > 0:
            watch.wait(left_s)


def _tell(cluster: Cluster) -> None:
    """A revision that wants nothing to run; where there never was one, just stop."""
    for attempt in range(_TRIES):
        bases = cluster.numbers()
        current = cluster.revision()
        try:
            if current is None:
                cluster.ask_each("stop_node")
            else:
                cluster.propose(replace(current, down=True, note=""), bases)
        except Conflict:
            if attempt == _TRIES - 1:
                raise
        except NodeLost:  # it was on its way already
            return
        else:
            return


def _show(cluster: Cluster, agents: int) -> None:
    """On a terminal: how many still run, until the nodes close the conversation."""
    if not is_terminal(sys.stderr) or not agents:
        return
    with cluster.watch() as watch:
        while len(watch.lost) < len(watch.doors):
            left = sum(row.phase in ALIVE for row in watch.rows.values())
            sys.stderr.write(f"\rstopping: {agents - min(left, agents)}/{agents}\x1b[K")
            sys.stderr.flush()
            watch.wait(1.0)
    sys.stderr.write("\r\x1b[K")
