"""How many replicas of an agent run, from now on.

    agentkit scale Worker=4
    agentkit scale main_pc/Worker=4 Encoder=2

New ones start on the next free ports of their class and get calls once they are ready; of those that leave, the highest
first, callers are told before they go, so that no call is lost. It is kept when nodes start again, and with `agentkit up`;
`agentkit apply` shows the file's own number and brings it back. 1 at least: `agentkit stop` stops an agent.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from agentkit.errors import ConfigError
from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.change import RUN_ON, current, left_out, machines_of, report
from startup.cli.cluster import Cluster
from startup.cli.common import add_waiting_arguments, choose, note, say, say_json, width_of
from startup.cli.follow import Aim, follow
from startup.plan.changes import changes
from startup.plan.revision import Revision
from startup.spec.ports import ports_of
from startup.spec.scale import MAX_SLOTS, scaled, slots_of
from startup.view.changes import change_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("numbers", nargs="+", metavar="AGENT=N", help="name or machine/name, and how many of it")
    add_waiting_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 when as many as wanted are ready and the others are gone; 1, 3 as the other commands that wait."""
    began = (time.monotonic(), time.time())
    with Cluster.reach(arguments.cluster) as cluster:
        before = current(cluster)
        wanted = numbers_of(arguments.numbers, before.fleet.ids())
        target = rescaled(before, wanted)
        found = changes(before, target)
        note(change_lines(found, width=width_of(sys.stderr)))
        if target.fleet == before.fleet and target.scaled == before.scaled:
            if arguments.json:
                say_json({"cluster": cluster.name, "revision": before.number, "changes": found.to_wire()})
            return exits.DONE
        revision = cluster.propose(target)
        unreached = left_out(cluster, machines_of(revision.fleet), RUN_ON)
        if arguments.no_wait:
            if arguments.json:
                facts = {"cluster": cluster.name, "revision": revision.number, "changes": found.to_wire()}
                say_json({**facts, "unreached": unreached})
            else:
                say(f"{cluster.name}: the nodes have revision {revision.number}")
            return exits.FAILED if unreached else exits.DONE
        missing = {it["machine"] for it in unreached}
        ours = [
            spec for spec in revision.fleet.agents
            if slots_of(spec.id) in wanted and spec.enabled and spec.id not in revision.stopped and spec.machine not in missing
        ]  # fmt: skip
        aim = Aim(
            cluster=cluster.name,
            wanted=[spec.id for spec in ours],
            unwanted=frozenset(id for id in found.removed if id.machine not in missing),
            number=revision.number,
        )
        with cluster.watch() as watch:
            outcome = follow(watch, aim, began_s=began[0], timeout_s=arguments.timeout)
        return report(arguments, cluster, aim, outcome, began=began, unreached=unreached)


def numbers_of(words: Sequence[str], known: Sequence[AgentId]) -> dict[str, int]:
    """machine/name -> how many, of `AGENT=N` words. ConfigError: no such agent, or no such number."""
    found: dict[str, int] = {}
    for word in words:
        name, equals, text = word.rpartition("=")
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else -1
        if not equals or not 0 <= number <= MAX_SLOTS or "#" in name:
            fix = "for example Worker=4"
            raise ConfigError(at="AGENT=N", got=word, want=f"an agent and a number from 1 to {MAX_SLOTS}", fix=fix)
        if number == 0:
            fix = f"`agentkit stop {name}` stops it; its entry, ports and state stay"
            raise ConfigError(at="AGENT=N", got=word, want="at least 1", fix=fix)
        (agent,) = {slots_of(id) for id in choose([name], known)}
        found[agent] = number
    return found


def rescaled(revision: Revision, numbers: dict[str, int]) -> Revision:
    """The same fleet with so many slots of these agents. Pure; ConfigError: no port is left."""
    fleet = scaled(revision.fleet, numbers, ports_of(revision.fleet))
    stopped = revision.stopped & frozenset(fleet.ids())
    return replace(revision, fleet=fleet, stopped=stopped, scaled={**revision.scaled, **numbers}, note="")
