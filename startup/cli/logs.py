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
from collections.abc import Mapping, Sequence
from typing import Final

from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import choose, has_colour, note, say, say_json
from startup.cli.logfeed import LogFeed
from startup.plan.row import AgentRow
from startup.view import logs as view

#: Longest column for names.
_LABEL: Final = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="only these; default: all")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument(
        "-n", "--lines", type=int, default=20, metavar="N", help="the last N lines of each (default 20)"
    )


def run(arguments: argparse.Namespace) -> int:
    """0; a log that is not there yet is empty, and a machine that does not answer is told of on stderr."""
    with Cluster.find(arguments.cluster) as cluster:
        _, rows = cluster.status()
        known = {row.id: row for row in rows}
        chosen = choose(arguments.agents, known) if arguments.agents else list(known)
        shown = [known[id] for id in chosen if known[id].log]
        feed = LogFeed(cluster, shown)
        ended = _merged(feed, feed.last(arguments.lines))
        if arguments.json and not arguments.follow:
            notes = {"notes": feed.notes} if feed.notes else {}
            say_json({"lines": [view.document(line) for line in ended], **notes})
            return exits.DONE
        printer = _Printer(shown, as_json=arguments.json)
        printer.show(ended)
        if not shown:
            note("no agent has a log")
        _tell_notes(feed)
        while arguments.follow:
            now_s = time.time()
            lines = _merged(feed, feed.come(), after_s=now_s)
            if lines:
                printer.show(lines)
            _tell_notes(feed)
    return exits.DONE


def _merged(feed: LogFeed, texts: Mapping[AgentId, Sequence[str]], after_s: float = 0.0) -> list[view.LogLine]:
    """By time, as this machine's clock has it. `after_s`: the time of what tells none."""
    clocks_s = feed.clocks_s
    return list(
        view.merged(
            (view.parse(id, lines, after_s=after_s + clocks_s.get(id.machine, 0.0)) for id, lines in texts.items()),
            ahead_s=clocks_s,
        )
    )


def _tell_notes(feed: LogFeed) -> None:
    note(feed.notes)
    feed.notes.clear()


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
