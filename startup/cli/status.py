"""Show the agents of a running cluster: phase, health, pid, memory, calls, and what is the matter.

agentkit status                 every agent of every machine
agentkit status TaskManager     one agent: what it waits for, its last exit and error, the end of its log
agentkit status --watch         again and again, until Ctrl-C
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Final

from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import choose, has_colour, is_terminal, say, say_json, width_of
from startup.cli.logfeed import tails
from startup.plan.row import AgentRow
from startup.view import document
from startup.view.logs import plain
from startup.view.table import agent_lines, status_lines

#: Seconds between two looks of `--watch`.
WATCH_EVERY_S: Final = 1.0
#: Lines of its log that are shown for one agent.
TAIL_LINES: Final = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "agent", nargs="?", metavar="AGENT", help="only this one, in full: name, name#slot or machine/name"
    )
    parser.add_argument("--watch", action="store_true", help="show it again every second, until Ctrl-C")


def run(arguments: argparse.Namespace) -> int:
    """0, also when agents have failed: it is the question that succeeded."""
    with Cluster.find(arguments.cluster) as cluster:
        if not arguments.watch:
            return _once(cluster, arguments)
        if not is_terminal(sys.stdout) or arguments.json:
            while True:
                _once(cluster, arguments)
                time.sleep(WATCH_EVERY_S)
        _watch(cluster, arguments)
    return exits.DONE


def _once(cluster: Cluster, arguments: argparse.Namespace) -> int:
    answers, rows = cluster.status(memory=True)
    shown = _shown(rows, arguments.agent)
    if arguments.json:
        told = document.status(cluster.name, answers, shown, time.time())
        if arguments.agent:
            told["log_tail"] = {str(id): lines for id, lines in tails(cluster, shown, TAIL_LINES).items()}
        say_json(told)
    else:
        say(_lines(cluster, answers, shown, one=bool(arguments.agent)))
    return exits.DONE


def _watch(cluster: Cluster, arguments: argparse.Namespace) -> None:
    from startup.view.progress import LiveBoard

    with LiveBoard(sys.stdout) as live:
        while True:
            answers, rows = cluster.status()
            lines = _lines(cluster, answers, _shown(rows, arguments.agent), one=bool(arguments.agent))
            _, height = live.size()
            split = [part for line in lines for part in line.splitlines() or [""]]
            hidden = len(split) - height
            live.paint(
                split if hidden <= 0 else [*split[: height - 1], f"and {hidden + 1} lines more"], time.monotonic()
            )
            time.sleep(WATCH_EVERY_S)


def _shown(rows: list[AgentRow], agent: str | None) -> list[AgentRow]:
    if agent is None:
        return rows
    chosen: set[AgentId] = set(choose([agent], [row.id for row in rows]))
    return [row for row in rows if row.id in chosen]


def _lines(cluster: Cluster, answers: list[dict[str, Any]], rows: list[AgentRow], *, one: bool) -> list[str]:
    width, colour, now_s = width_of(sys.stdout), has_colour(sys.stdout), time.time()
    if not one:
        return status_lines(cluster.name, answers, rows, now_s=now_s, width=width, colour=colour)
    lines: list[str] = []
    ends = tails(cluster, rows, TAIL_LINES)
    for row in rows:
        tail = plain(ends.get(row.id, []))
        lines += [*([""] if lines else []), *agent_lines(row, now_s=now_s, width=width, log_tail=tail, colour=colour)]
    return lines
