"""Wake agents that sleep, as their first call would.

agentkit wake TaskManager
"""

from __future__ import annotations

import argparse
import time

from startup.cli import exits
from startup.cli.change import RUN_ON, add_agents, current, left_out, wait_until_up
from startup.cli.cluster import Cluster
from startup.cli.common import choose, say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_agents(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 when all of them are awake; 1, 3 as the other commands that wait."""
    began = (time.monotonic(), time.time())
    with Cluster.reach(arguments.cluster) as cluster:
        revision = current(cluster)
        ids = choose(arguments.agents, revision.fleet.ids())
        _, rows = cluster.status()
        before = {row.id: row.incarnation for row in rows if row.id in ids}
        unreached = left_out(cluster, {str(id.machine) for id in ids}, RUN_ON)
        woken: list[str] = []
        for machine, connection in cluster.connections.items():
            here = [str(id) for id in ids if id.machine == machine]
            if here:
                woken += connection.ask("wake", agents=here)["woken"]
        told = [id for id in ids if str(id) in woken]
        if arguments.no_wait or not told:
            if arguments.json:
                say_json({"cluster": cluster.name, "woken": woken, "unreached": unreached})
            else:
                say(
                    f"told the nodes to wake {', '.join(woken)}"
                    if woken
                    else "nothing to wake: none of them sleeps deep"
                )
            return exits.FAILED if unreached else exits.DONE
        return wait_until_up(arguments, cluster, revision, told, began=began, unreached=unreached, renewed=before)
