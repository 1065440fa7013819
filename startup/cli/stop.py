"""Stop agents; the rest of the fleet runs on.

    agentkit stop TaskManager                      its dependants stay, and are degraded
    agentkit stop TaskManager --with-dependants    they are stopped first

They stay stopped, also when their node is started again, until `start` or `up`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Mapping

from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.change import RUN_ON, add_agents, current, left_out, machines_of, with_dependants
from startup.cli.cluster import Cluster
from startup.cli.common import choose, note, say, say_json
from startup.plan.phase import ALIVE
from startup.plan.row import AgentRow
from startup.view.words import count, duration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_agents(parser)
    parser.add_argument(
        "--with-dependants", action="store_true", help="also stop every agent that requires one of them, first"
    )


def run(arguments: argparse.Namespace) -> int:
    """0 when nothing is left of them; 1 when a machine was not reached; 3 when it takes longer than --timeout."""
    began_s = time.monotonic()
    with Cluster.reach(arguments.cluster) as cluster:
        revision = current(cluster)
        ids = set(choose(arguments.agents, revision.fleet.ids()))
        if arguments.with_dependants:
            ids = with_dependants(revision.fleet, ids)
        if any(id.machine in cluster.connections for id in ids):  # else machines would differ, and nothing be stopped
            cluster.propose(revision.stopping(ids))
        unreached = left_out(cluster, machines_of(revision.fleet), RUN_ON)
        told = {id for id in ids if id.machine in cluster.connections}
        if not arguments.no_wait and told:
            with cluster.watch() as watch:
                gone = watch.until(lambda rows: not left_of(rows, told), arguments.timeout)
                left = left_of(watch.rows, told)
            if not gone:
                note(f"agentkit: still stopping: {', '.join(left)}")
                return exits.TIMED_OUT
    names = sorted(map(str, told))
    elapsed_s = time.monotonic() - began_s
    if arguments.json:
        facts = {"stopped": names, "elapsed_s": round(elapsed_s, 3), "unreached": unreached}
        say_json({"cluster": cluster.name, **facts})
    elif arguments.no_wait and told:
        say(f"told the nodes to stop {', '.join(names)}")
    elif told:
        say(f"{count(len(names), 'agent')} stopped in {duration(elapsed_s)}: {', '.join(names)}")
    return exits.FAILED if unreached else exits.DONE


def left_of(rows: Mapping[AgentId, AgentRow], ids: Collection[AgentId]) -> list[str]:
    """Those that still have a process, or that no node has told of yet."""
    return sorted(str(id) for id in ids if id not in rows or rows[id].phase in ALIVE)
