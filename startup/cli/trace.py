"""Show which calls belong together, and where their time went.

    agentkit trace                       the traces that agents keep, the latest first
    agentkit trace --agent TaskManager   those that it has taken part in
    agentkit trace 4bf92f35              one, as the tree of its calls

An ID may be shortened to what is unambiguous. Of the calls that begin a trace one in a hundred is kept (`trace: {sample: 0.01}`
in the fleet file, docs/tracing.md); every agent keeps its last 1,000 spans, which are asked for when this command runs. With
--json: one document {"spans": [...], "notes": [...]}.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from agentkit.errors import CallError, ConfigError
from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.cluster import Cluster
from startup.cli.common import choose, has_colour, note, say, say_json, width_of
from startup.plan.phase import Phase
from startup.view import traces as view

if TYPE_CHECKING:
    from agentkit.client import Client

#: How long one agent may take to answer, in seconds.
ANSWERS_WITHIN_S: Final = 2.0
#: Agents that are asked at once.
AT_ONCE: Final = 64
#: Spans that each agent is asked for where no trace is named.
LATEST: Final = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", nargs="?", metavar="TRACE_ID", help="one in full; default: a list")
    parser.add_argument("--agent", metavar="AGENT", help="only what this one keeps: name, name#slot or machine/name")
    parser.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="at most N traces (default 20)")


def run(arguments: argparse.Namespace) -> int:
    """0; ConfigError for an id that nobody keeps spans of, or that means several traces."""
    import uvloop

    wanted = (arguments.trace or "").lower()
    if wanted.strip("0123456789abcdef"):
        raise ConfigError(at="TRACE_ID", got=arguments.trace, want="hexadecimal digits, as `agentkit trace` lists them")
    with Cluster.find(arguments.cluster) as cluster:
        _, rows = cluster.status()
        asked = [row.id for row in rows if row.phase is Phase.READY and row.endpoints]
        if arguments.agent is not None:
            asked = [id for id in choose([arguments.agent], [row.id for row in rows]) if id in asked]
        name = cluster.name
    spans, notes = uvloop.run(_spans(name, asked, wanted))
    found = view.traces(spans)
    if wanted and len(found) != 1:
        fix = (
            f"it may mean {', '.join(trace.id for trace in found)}"
            if found
            else "`agentkit trace` lists what agents keep"
        )
        raise ConfigError(at="TRACE_ID", got=arguments.trace, want="one trace that an agent still keeps", fix=fix)
    shown = found[: arguments.lines]
    if arguments.json:
        say_json({"cluster": name, "spans": [span for trace in shown for span in trace.spans], "notes": notes})
        return exits.DONE
    width, colour = width_of(sys.stdout), has_colour(sys.stdout)
    if wanted:
        say(view.tree(found[0], width=width, colour=colour))
    elif shown:
        say(view.table(shown, now_s=time.time(), width=width, colour=colour))
    else:
        note("no agent keeps a trace; `trace: {sample: 1}` in the fleet file keeps all")
    note(notes)
    return exits.DONE


async def _spans(cluster: str, agents: list[AgentId], trace_id: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What `agents` keep of it, and who did not say."""
    from agentkit.client import Client

    turns = asyncio.Semaphore(AT_ONCE)
    async with Client(cluster=cluster, trace_sample=0) as client:
        answers = await asyncio.gather(*(_asked(client, id, trace_id, turns) for id in agents))
    notes = [answer for answer in answers if isinstance(answer, str)]
    return [span for answer in answers if not isinstance(answer, str) for span in answer], notes


async def _asked(client: Client, id: AgentId, trace_id: str, turns: asyncio.Semaphore) -> list[dict[str, Any]] | str:
    from agentkit.agent.builtin import SPANS

    arguments = {"trace_id": trace_id} if trace_id else {"limit": LATEST}
    async with turns:
        try:
            spans: list[dict[str, Any]] = await client.call(
                str(id), SPANS, arguments, timeout=ANSWERS_WITHIN_S, attempts=1
            )
        except CallError as error:
            return f"{id} did not answer, its spans are missing: {error.message}"
    return spans
