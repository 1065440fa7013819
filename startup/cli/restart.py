"""Restart agents, only these; it also tries again what has failed, and does not count against the restart budget.

agentkit restart TaskManager Analytics
agentkit restart TaskManager --with-dependants    those that require it, directly or not, after it
"""

from __future__ import annotations

import argparse
import time

from startup.cli import exits
from startup.cli.change import RUN_ON, add_agents, current, left_out, wait_until_up, with_dependants
from startup.cli.cluster import Cluster
from startup.cli.common import choose, note, say, say_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_agents(parser)
    parser.add_argument(
        "--with-dependants", action="store_true", help="restart those that require them too, directly or not"
    )


def run(arguments: argparse.Namespace) -> int:
    """0 when all are ready again; 1, 3 as the other commands that wait."""
    began = (time.monotonic(), time.time())
    with Cluster.reach(arguments.cluster) as cluster:
        revision = current(cluster)
        ids = choose(arguments.agents, revision.fleet.ids())
        if arguments.with_dependants:
            named, fleet = set(ids), revision.fleet
            above = with_dependants(fleet, ids)
            runs = {spec.id for spec in fleet.agents if spec.enabled} - revision.stopped
            ids = [id for id in fleet.ids() if id in named or (id in above and id in runs)]
        _, rows = cluster.status()
        before = {row.id: row.incarnation for row in rows if row.id in ids}
        unreached = left_out(cluster, {str(id.machine) for id in ids}, RUN_ON)
        asked = [id for id in ids if id.machine in cluster.connections]
        begun: set[str] = set()
        for machine, connection in cluster.connections.items():
            here = [str(id) for id in asked if id.machine == machine]
            if here:
                begun.update(connection.ask("restart", agents=here)["agents"])
        told = [id for id in asked if str(id) in begun]
        idle = [str(id) for id in asked if str(id) not in begun]
        if idle:
            note(
                f"agentkit: not restarted, because nothing of it shall run: {', '.join(idle)}; `agentkit start` starts it"
            )
        if arguments.no_wait or not told:
            names = [str(id) for id in told]
            if arguments.json:
                say_json({"cluster": cluster.name, "restarted": names, "unreached": unreached})
            elif told:
                say(f"told the nodes to restart {', '.join(names)}")
            return exits.FAILED if unreached or idle else exits.DONE
        code = wait_until_up(arguments, cluster, revision, told, began=began, unreached=unreached, renewed=before)
        return code or (exits.FAILED if idle else exits.DONE)
