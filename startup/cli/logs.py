"""Show what agents have logged, merged by time.

    agentkit logs                          the last 20 lines of every agent
    agentkit logs TaskManager -n 100       of one
    agentkit logs -f                       and what comes, until Ctrl-C

With --json: one document {"lines": [...]}; with -f one object per line of output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Final

from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import choose, has_colour, note, say, say_json
from startup.cli.tail import Follower, last_lines
from startup.plan.row import AgentRow
from startup.view import logs as view

#: Seconds between two looks at files that are followed: a person does not see less.
LOOK_EVERY_S: Final = 0.2
#: Longest column for names.
_LABEL: Final = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="only these; default: all")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=int, default=20, metavar="N", help="the last N lines of each (default 20)"
    )


def run(arguments: argparse.Namespace) -> int:
    """0; a log that is not there yet is empty."""
    with Cluster.find(arguments.cluster) as cluster:
        _, rows = cluster.status()
    chosen = set(choose(arguments.agents, [row.id for row in rows])) if arguments.agents else {row.id for row in rows}
    shown = [row for row in rows if row.id in chosen and row.log]
    # before the ends are read: nothing written in between is lost, though it may be shown twice
    followers = [(row.id, Follower(row.log)) for row in shown] if arguments.follow else []
    ended = view.merged(list(view.parse(row.id, last_lines(row.log, arguments.lines))) for row in shown)
    if arguments.json and not arguments.follow:
        say_json({"lines": [view.document(line) for line in ended]})
        return exits.DONE
    printer = _Printer(shown, as_json=arguments.json)
    printer.show(list(ended))
    if arguments.follow:
        _follow(followers, printer)
    elif not shown:
        note("no agent has a log")
    return exits.DONE


class _Printer:
    def __init__(self, rows: Sequence[AgentRow], *, as_json: bool) -> None:
        widest = max((len(row.id.instance) for row in rows), default=0)
        self._label = min(_LABEL, widest) if len(rows) != 1 else 0
        self._as_json = as_json
        self._colour = has_colour(sys.stdout)

    def show(self, lines: Sequence[view.LogLine]) -> None:
        if self._as_json:
            say(json.dumps(view.document(line), default=str) for line in lines)
        else:
            say(text for line in lines for text in view.render(line, label=self._label, colour=self._colour))


def _follow(followers: Sequence[tuple[AgentId, Follower]], printer: _Printer) -> None:
    while True:
        time.sleep(LOOK_EVERY_S)
        now_s = time.time()
        come = [list(view.parse(id, follower.read(), after_s=now_s - LOOK_EVERY_S)) for id, follower in followers]
        if any(come):
            printer.show(list(view.merged(come)))
