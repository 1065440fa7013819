"""Answers to `agentkit debug`, which an agent's node passes on. Imported when somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from agentkit.agent.dispatch import Dispatcher
from agentkit.debug import memory, slow, stacks
from agentkit.directory.mesh import ANSWER, MeshDirectory
from agentkit.errors import BadRequest, CallError, Unreachable
from agentkit.observe.metrics import AgentMetrics
from agentkit.wire.frames import pack

#: Rows of each table unless somebody says otherwise.
DEFAULT_ROWS: Final = 25


async def told(directory: MeshDirectory, question: Mapping[str, Any], **of: Any) -> None:
    """Answer the node's question, whatever comes of it. `of`: as for `answer`."""
    said: dict[str, Any]
    try:
        result = await answer(str(question["what"]), dict(question.get("options") or {}), **of)
        pack(result)  # what it can't carry, or is too large, is an answer, too
        said = {"result": result}
    except (CallError, TypeError, ValueError, KeyError) as exc:
        said = {"error": str(exc) or type(exc).__name__}
    with suppress(Unreachable):  # it went away meanwhile, and whoever asked with it
        directory.say(ANSWER, number=question["number"], **said)


async def answer(
    what: str,
    options: Mapping[str, Any],
    *,
    dispatcher: Dispatcher,
    metrics: AgentMetrics,
    own: Mapping[asyncio.Task[Any], float],
) -> dict[str, Any]:
    """What is asked for, of this process as it is now. BadRequest: it can't be. `own`: the agent's own tasks, and since when."""
    rows = max(1, min(memory.MAX_ROWS, int(options.get("rows") or DEFAULT_ROWS)))
    since = {task: (began_s, "the agent itself") for task, began_s in own.items()}
    since |= dispatcher.tasks()
    match what:
        case "stacks":
            return {
                **stacks.threads(),
                **{f"tasks_{k}" if k == "left_out" else k: v for k, v in stacks.tasks(since).items()},
            }
        case "tasks":
            return stacks.tasks(since)
        case "heap":
            return await memory.heap(float(options.get("seconds") or 0), rows)
        case "gc":
            return memory.collector(collects=bool(options.get("collect")), rows=rows)
        case "slow":
            return slow.slowest(metrics, rows)
    raise BadRequest(f"no `debug {what}`; there are stacks, tasks, heap, gc, slow")
