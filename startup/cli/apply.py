"""Bring a running fleet to what a file says, agent by agent: shows what changes, asks, and replaces what serves while it serves.

    agentkit apply fleet.yaml                          shows the difference, and asks
    agentkit apply fleet.yaml --yes --max-unavailable 25%

What is new starts, in order; what changed is replaced by hot swap, so many at a time as `rollout: {max_unavailable: 1}` in
the file says; what is gone is drained when everything else is through. A new process that does not become ready halts it,
and what has changed already goes back to how it was: exit 1, with the end of its log. Agents that an operator stopped stay
stopped; the numbers that `agentkit scale` set give way to the file's. The nodes decide: Ctrl-C, or the end of this
command, changes nothing (130). Without a terminal to ask at, --yes is needed (2). Nothing to do: exit 0.
"""

from __future__ import annotations

import argparse
import time

from startup.cli import exits
from startup.cli.change import current
from startup.cli.cluster import Cluster
from startup.cli.common import note
from startup.cli.files import add_file_arguments, add_machine_arguments, checked_fleet, file_of
from startup.cli.rollout import add_rollout_arguments, roll_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser)
    add_rollout_arguments(parser)
    add_machine_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """See the module's text for the codes."""
    from agentkit.directory.locate import cluster_of
    from startup.cli.up import refuse_strangers
    from startup.plan.revision import Revision
    from startup.spec.ports import ports_of

    began = (time.monotonic(), time.time())
    path = file_of(arguments)
    try:
        with Cluster.reach(arguments.cluster or (cluster_of(path) if path else None)) as cluster:
            running = current(cluster)
            fleet = checked_fleet(arguments, ports_of(running.fleet), "nothing was changed")
            if fleet is None:
                return exits.USAGE
            refuse_strangers(fleet)
            stopped = running.stopped & frozenset(fleet.ids())
            target = Revision(
                number=running.number,
                author="",
                time_s=0.0,
                fleet=fleet,
                stopped=stopped,
                unstarted={id: command for id, command in running.unstarted.items() if id in stopped},
            )
            what = str(path or fleet.file)
            return roll_out(arguments, cluster, running, target, what=what, began=began, is_pushed=arguments.push)
    except KeyboardInterrupt:
        note("detached: what the nodes have been told, they carry on; `agentkit status --watch` shows it")
        return exits.INTERRUPTED
