"""`agentkit debug`: the node passes it on to the agent; where an agent's loop is stuck, a signal has its stacks written to its log."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.names import AgentId
from agentkit.transport.gate import STACKS
from startup.errors import Refused
from startup.node import logread
from startup.node.attached import Attached
from startup.node.executor import Executor
from startup.node.paths import Places
from startup.node.running import Running

#: An agent whose loop turns answers at once; one that has not by then, in seconds, is taken for stuck.
ANSWERS_WITHIN_S: Final = 2.0
#: Longest that an agent is asked to watch itself, in seconds.
MAX_SECONDS: Final = 60.0
#: Working on what it has seen takes an agent some time, too, in seconds.
WORKS_S: Final = 20.0
#: How long stacks in the log are waited for, in seconds: faulthandler writes them at once, if the kernel lets it.
WRITTEN_WITHIN_S: Final = 5.0
_LOOK_S: Final = 0.05
#: Most of the log that is read, in bytes.
MAX_BYTES: Final = 256 * 1024

#: What faulthandler writes.
_STACK_LINE: Final = re.compile(r"(?:Current t|T)hread 0x|  File \"|  \.\.\.$|  <no Python frame>|Extension modules:")


class Debugging:
    """Belongs to the running loop."""

    def __init__(self, attached: Attached, executor: Executor, places: Places) -> None:
        self._attached = attached
        self._executor = executor
        self._places = places

    @property
    def operations(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        return {"debug": self._debug}

    async def _debug(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`agent`, `what`, `options` -> what the agent answers, with `from: agent`; or `from: log` and `lines`."""
        id, what = AgentId.parse(str(arguments["agent"])), str(arguments["what"])
        options = dict(arguments.get("options") or {})
        seconds = min(MAX_SECONDS, max(0.0, float(options.get("seconds") or 0)))
        running = self._executor.of(id)
        if running is None:
            raise Refused("not_running", f"{id} has no process on this machine; `agentkit status {id}` says why")
        works_s = WORKS_S if what == "heap" or options.get("collect") else ANSWERS_WITHIN_S
        try:
            async with asyncio.timeout(works_s + seconds):
                question = {"what": what, "options": {**options, "seconds": seconds}}
                return {"from": "agent", **await self._attached.ask(running.incarnation, question)}
        except TimeoutError:
            is_attached = self._attached.has(running.incarnation)
            why = "does not answer: its event loop is stuck" if is_attached else "has not begun to serve, or is stuck"
            if what != "stacks":
                raise Refused(
                    "silent", f"{id} {why}; `agentkit debug {id.instance} stacks` shows where it is"
                ) from None
            return {"from": "log", "why": why, "lines": await self._written(id, running)}

    async def _written(self, id: AgentId, running: Running) -> list[str]:
        """The stacks of all its threads, as it writes them into its log. Refused: it can't."""
        if not _catches(running.pid, STACKS):
            raise Refused("deaf", f"{id} is no agent of ours, or not that far: its process would not write its stacks")
        log = self._places.log(id.instance)
        cursor = logread.last(log, 1, 1).cursor
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(running.pidfd, STACKS)
        lines: list[str] = []
        ends_s = now_s() + WRITTEN_WITHIN_S
        while now_s() < ends_s:
            await asyncio.sleep(_LOOK_S)
            found = [line for line in logread.after(log, cursor, MAX_BYTES).lines if _STACK_LINE.match(line)]
            if found and len(found) == len(lines):  # it has grown no more since the last look
                return found
            lines = found
        if not lines:
            raise Refused(
                "unwritten",
                f"{id} wrote no stacks into {log} within {WRITTEN_WITHIN_S:g} s; is it stopped, or its terminal another?",
            )
        return lines


def _catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for a signal, which else would end it."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)
