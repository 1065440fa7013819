"""Look into one running agent, which goes on meanwhile. For operators only.

    agentkit debug TaskManager stacks              where every thread and task is now, and since when
    agentkit debug TaskManager tasks               asyncio's tasks: age, what for, what they wait for
    agentkit debug TaskManager heap                objects by type
    agentkit debug TaskManager heap --seconds 10   and where what it allocates within 10 s, and keeps, comes from
    agentkit debug TaskManager gc [--collect]      the garbage collector: generations, what it can't free, objects by type
    agentkit debug TaskManager slow                methods by time taken, and the slowest calls of late

It is asked through the node of its machine. Of an agent whose event loop is stuck, `stacks` shows what a signal has it write into
its log. Tracing allocations slows an agent down while it lasts, --collect holds it up for a moment; the rest costs it milliseconds.
With --json: one document {"agent", "what", "from", ...}.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from agentkit.errors import ConfigError, NoNode
from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import choose, duration_s, note, say, say_json, width_of
from startup.control import ANSWER_WITHIN_S
from startup.errors import Refused
from startup.view import debug as view

#: What one may look at.
WHAT: Final = ("stacks", "tasks", "heap", "gc", "slow")
#: Beyond what the agent is asked to take its time for, in seconds.
_WORKS_S: Final = 25.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("agent", metavar="AGENT", help="name, name#slot or machine/name")
    parser.add_argument("what", metavar="WHAT", choices=WHAT, help=", ".join(WHAT))
    parser.add_argument(
        "--seconds",
        type=duration_s,
        default=0.0,
        metavar="TIME",
        help="heap: trace allocations for so long, at most 60 s",
    )
    parser.add_argument("--collect", action="store_true", help="gc: collect first")
    parser.add_argument(
        "-n", "--lines", type=int, default=25, metavar="N", help="at most N rows of a table (default 25)"
    )


def run(arguments: argparse.Namespace) -> int:
    """0; 1 when the agent can't be looked into, with the reason."""
    what, seconds = arguments.what, arguments.seconds
    if seconds and what != "heap":
        raise ConfigError(at="--seconds", got=what, want="heap: only allocations are traced")
    if arguments.collect and what != "gc":
        raise ConfigError(at="--collect", got=what, want="gc")
    options = {"seconds": seconds, "collect": arguments.collect, "rows": arguments.lines}
    with _node_of(arguments) as (cluster, id):
        talk = cluster.doors[id.machine].open(timeout_s=ANSWER_WITHIN_S + seconds + _WORKS_S)
        try:
            answer: dict[str, Any] = talk.ask("debug", agent=str(id), what=what, options=options)
        except Refused as exc:
            if arguments.json:
                say_json({"agent": str(id), "what": what, "error": {"code": exc.code, "message": str(exc)}})
            note(f"agentkit: {exc}")
            return exits.FAILED
        finally:
            talk.close()
    if arguments.json:
        say_json({"agent": str(id), "what": what, **answer})
    else:
        say(view.lines(what, answer, width=width_of(sys.stdout), rows=arguments.lines))
    return exits.DONE


@contextmanager
def _node_of(arguments: argparse.Namespace) -> Iterator[tuple[Cluster, AgentId]]:
    """A conversation with the node of the agent's machine, wherever that is. NoNode: it is not reached."""
    with Cluster.find(arguments.cluster) as cluster:
        _, rows = cluster.status()
        ids = choose([arguments.agent], [row.id for row in rows])
        if len(ids) != 1:
            names = ", ".join(map(str, ids))
            raise ConfigError(at="AGENT", got=arguments.agent, want=f"one of {names}")
        if ids[0].machine in cluster.doors:
            yield cluster, ids[0]
            return
    with Cluster.reach(arguments.cluster) as cluster:
        if ids[0].machine not in cluster.doors:
            why = "; ".join(cluster.unreached({str(ids[0].machine)}).values())
            raise NoNode(f"the node of {ids[0].machine}, where {ids[0].instance} runs, is not reached: {why}")
        yield cluster, ids[0]
