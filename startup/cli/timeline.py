"""Show the last start: when each agent was forked, imported, initialised and ready, and the path that made it that long.

agentkit timeline                     as text
agentkit timeline --svg start.svg     as a picture (Gantt chart, slowest path in red)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import note, say, say_json, width_of
from startup.view import timeline as view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--svg", metavar="FILE", help="draw it into this file")


def run(arguments: argparse.Namespace) -> int:
    """0; 1 when no agent has become ready yet, so that there is nothing to show."""
    with Cluster.find(arguments.cluster) as cluster:
        _, rows = cluster.status()
        name, machines = cluster.name, len({row.id.machine for row in rows})
    line = view.timeline(rows)
    if arguments.svg:
        from startup.view.svg import gantt
        from startup.view.words import count

        Path(arguments.svg).write_text(
            gantt(line, title=f"Start of {name} on {count(machines, 'machine')}"), encoding="utf-8"
        )
        note(f"wrote {arguments.svg}")
    if arguments.json:
        say_json(view.document(name, line))
    elif not arguments.svg:
        say(view.timeline_lines(line, width=width_of(sys.stdout)))
    return exits.DONE if line.bars else exits.FAILED
