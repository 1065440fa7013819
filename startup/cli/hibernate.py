"""Send agents to sleep now, however long they have been idle. Their ports stay: the first call wakes them.

agentkit hibernate TaskManager
agentkit wake TaskManager

An agent that is busy, or has a client that can't be told to wait, stays awake and says why.
"""

from __future__ import annotations

import argparse
import time

from startup.cli import exits
from startup.cli.change import RUN_ON, current, left_out
from startup.cli.cluster import Cluster
from startup.cli.common import choose, note, say, say_json
from startup.view.words import count, duration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agents", nargs="+", metavar="AGENT", help="name, name#slot or machine/name")
    parser.add_argument(
        "--depth",
        choices=("light", "deep"),
        default="deep",
        help="light: memory and connections go; deep (default): the process, too",
    )


def run(arguments: argparse.Namespace) -> int:
    """0 when all of them sleep; 1 when one stays awake, or a machine was not reached."""
    began_s = time.monotonic()
    with Cluster.reach(arguments.cluster) as cluster:
        ids = choose(arguments.agents, current(cluster).fleet.ids())
        unreached = left_out(cluster, {str(id.machine) for id in ids}, RUN_ON)
        asleep: list[str] = []
        awake: dict[str, str] = {}
        for machine, connection in cluster.connections.items():
            here = [str(id) for id in ids if id.machine == machine]
            if here:
                answer = connection.ask("hibernate", agents=here, depth=arguments.depth)
                asleep += answer["asleep"]
                awake |= answer["awake"]
    elapsed_s = time.monotonic() - began_s
    if arguments.json:
        facts = {"asleep": asleep, "awake": awake, "elapsed_s": round(elapsed_s, 3), "unreached": unreached}
        say_json({"cluster": cluster.name, **facts})
    else:
        for name, why in awake.items():
            note(f"agentkit: {name} stays awake: {why}")
        if asleep:
            say(f"{count(len(asleep), 'agent')} asleep after {duration(elapsed_s)}: {', '.join(asleep)}")
    return exits.FAILED if awake or unreached else exits.DONE
