"""Show the events of a fleet.

    agentkit events                 which topics there are, how often, by whom; who receives them, and what was lost
    agentkit events 'task.*'        of these topics
    agentkit events -f              every event as it comes, until Ctrl-C
    agentkit events -f 'task.>'     of these topics

`*` in a topic stands for one word, `>` at its end for the rest. Agents tell their nodes once a second what they published and
received; events themselves pass no node's table and are shown only while somebody looks. With --json: one document
{"topics": [...], "subscribers": [...]}; with -f one object per event.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import has_colour, note, say, say_json, width_of

if TYPE_CHECKING:
    from agentkit.events.delivery import Delivery


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="only these; default: all")
    parser.add_argument("-f", "--follow", action="store_true", help="show events as they come, until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """0; with -f until Ctrl-C, through the death of a node."""
    from agentkit.events.topics import Pattern
    from startup.view import events as view

    pattern = Pattern(arguments.topic, at="TOPIC") if arguments.topic is not None else None
    if arguments.follow:
        return _follow(arguments)
    with Cluster.find(arguments.cluster) as cluster:
        machines = cluster.ask("events_seen")["machines"]
    answers = [told for told in machines.values() if told is not None]
    note(
        f"{machine} does not answer: its events are missing"
        for machine in sorted(machines)
        if machines[machine] is None
    )
    if arguments.json:
        say_json(view.document(answers, pattern))
        return exits.DONE
    lines = view.lines(answers, pattern, width=width_of(sys.stdout), colour=has_colour(sys.stdout))
    if lines:
        say(lines)
    else:
        note("no agent has told of any event yet")
    return exits.DONE


def _follow(arguments: argparse.Namespace) -> int:

    import uvloop

    from agentkit.client import Client
    from startup.view import events as view

    width, colour = width_of(sys.stdout), has_colour(sys.stdout)

    def show(one: Delivery) -> None:
        if arguments.json:
            told = {"topic": one.topic, "publisher": one.publisher, "at": one.at, "lost": one.lost, "event": one.data}
            say(json.dumps(told, default=str))
        else:
            say(view.arrived(one.topic, one.publisher, one.at, one.data, one.lost, width=width, colour=colour))

    async def follow() -> None:
        async with Client(cluster=arguments.cluster) as client, client.subscribe(arguments.topic or ">") as events:
            note(f"listening to {arguments.topic or 'all events'}; Ctrl-C ends it")
            async for one in events:
                show(one)

    uvloop.run(follow())
    return exits.DONE
