"""Restart agents, only these; it also tries again what has failed, and does not count against the restart budget.

agentkit restart TaskManager Analytics
"""

from __future__ import annotations

import argparse
import time

from startup.cli import exits
from startup.cli.change import add_agents, current, wait_until_up
from startup.cli.cluster import Cluster
from startup.cli.common import choose, note, say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_agents(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 when all are ready again; 1, 3 as the other commands that wait."""
    began = (time.monotonic(), time.time())
    with Cluster.find(arguments.cluster) as cluster:
        revision = current(cluster)
        ids = choose(arguments.agents, revision.fleet.ids())
        _, rows = cluster.status()
        before = {row.id: row.incarnation for row in rows if row.id in ids}
        unreached = sorted({str(id.machine) for id in ids} - set(cluster.connections))
        if unreached:
            note(f"agentkit: no node of {', '.join(unreached)} answers here; its agents are not restarted")
            ids = [id for id in ids if id.machine in cluster.connections]
        for machine, connection in cluster.connections.items():
            here = [str(id) for id in ids if id.machine == machine]
            if here:
                connection.ask("restart", agents=here)
        if arguments.no_wait:
            told = [str(id) for id in ids]
            if arguments.json:
                say_json({"cluster": cluster.name, "restarted": told})
            else:
                say(f"told the nodes to restart {', '.join(told)}")
            return exits.FAILED if unreached else exits.DONE
        code = wait_until_up(arguments, cluster, revision, ids, began=began, renewed=before)
        return exits.FAILED if unreached else code
