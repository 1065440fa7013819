"""Start agents that were stopped or have failed, and what they require.

    agentkit start TaskManager

Waits until they are ready (exit 1 when one can't be). Agents that run already are left alone.
"""

from __future__ import annotations

import argparse
import time

from startup.cli import exits
from startup.cli.change import (
    RUN_ON,
    add_agents,
    current,
    left_out,
    machines_of,
    wait_until_up,
    with_requirements,
)
from startup.cli.cluster import Cluster
from startup.cli.common import choose, say, say_json
from startup.plan.phase import Phase
from startup.plan.row import AgentRow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_agents(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 when all are ready; 1, 3 as the other commands that wait."""
    began = (time.monotonic(), time.time())
    with Cluster.reach(arguments.cluster) as cluster:
        revision = current(cluster)
        chosen = choose(arguments.agents, revision.fleet.ids())
        needed = with_requirements(revision.fleet, chosen)
        _, rows = cluster.status()
        again = [row for row in rows if row.id in needed and row.phase in (Phase.FAILED, Phase.BACKOFF)]
        if any(
            id.machine in cluster.connections for id in needed
        ):  # else machines would differ, and nothing be started
            revision = cluster.propose(revision.starting(needed))
        _try_again(cluster, again)
        unreached = left_out(cluster, machines_of(revision.fleet), RUN_ON)
        if arguments.no_wait:
            told = sorted(str(id) for id in needed if id.machine in cluster.connections)
            if arguments.json:
                say_json({"cluster": cluster.name, "started": told, "unreached": unreached})
            else:
                say(f"told the nodes to start {', '.join(told)}")
            return exits.FAILED if unreached else exits.DONE
        wanted = [id for id in revision.fleet.ids() if id in needed]
        return wait_until_up(arguments, cluster, revision, wanted, began=began, unreached=unreached)


def _try_again(cluster: Cluster, failed: list[AgentRow]) -> None:
    """Those that a node has given up, or waits with, are tried at once."""
    for machine, connection in cluster.connections.items():
        here = [str(row.id) for row in failed if row.id.machine == machine]
        if here:
            connection.ask("restart", agents=here)
