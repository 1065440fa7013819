"""Faults that an operator asks for, done by the node: it knows its processes by pidfd, and heals by itself what lasts.

    chaos {verb: kill, kind: agent | zygote | node, id, incarnation?}      SIGKILL, if it is still this life
    chaos {verb: stop, kind: agent | zygote, id, for_s}                    SIGSTOP, and SIGCONT after for_s
    chaos {verb: stop, kind: node, for_s}                                  this process's loop stands still
    chaos {verb: partition | delay, other, for_s, by_s}                    words of the node of `other` are not heard, or late
    chaos {verb: heal}                                                     all of it ends now
    chaos {verb: audit}                    -> {orphans: [pid], unheld: [agents that have no listening sockets]}

What is stopped is let go on by a process of its own (standstill.py), so that it goes on whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from agentkit.errors import BadRequest
from agentkit.names import AgentId
from agentkit.observe.log import get_logger
from startup.errors import Refused
from startup.node import standstill
from startup.node.executor import Executor
from startup.node.mesh.mesh import Mesh
from startup.node.orders import listening_on, machine_of
from startup.node.termination import send
from startup.node.turns import Turns
from startup.node.zygote.keeper import ZygoteKeeper
from startup.plan.phase import Phase

log = get_logger("node.chaos")

#: Nothing lasts longer than this, in seconds, whatever is asked for.
MAX_S: Final = 600.0
#: A node that is to die answers first, in seconds.
_LAST_WORDS_S: Final = 0.02
#: Where a guard finds the pidfd: any number that is not 0, 1, 2.
_HANDED_DOWN: Final = 3


class Chaos:
    """One for a node; `close` heals."""

    def __init__(self, turns: Turns, executor: Executor, zygote: ZygoteKeeper, mesh: Mesh) -> None:
        self._turns = turns
        self._executor = executor
        self._zygote = zygote
        self._mesh = mesh
        self._loop = asyncio.get_running_loop()
        self._guards: list[int] = []  # pidfds
        self._killed_zygote: int | None = None

    def perform(self, arguments: Mapping[str, Any]) -> Any:
        """The operation `chaos`."""
        verb, kind = str(arguments.get("verb")), str(arguments.get("kind", ""))
        for_s = min(float(arguments.get("for_s", 0.0)), MAX_S)
        if verb == "audit":
            return self._audit()
        log.warning("chaos", **{str(key): str(value)[:100] for key, value in arguments.items()})
        match verb, kind:
            case "heal", _:
                self.close()
            case "kill", "node" if self._zygote.pid in (None, self._killed_zygote):
                raise Refused("replacing", "its zygote is being replaced, and nobody would start the node again")
            case (("kill" | "stop"), "node"):
                act = self._die if verb == "kill" else lambda: time.sleep(for_s)
                self._loop.call_later(_LAST_WORDS_S, act)
            case "kill", ("agent" | "zygote"):
                pidfd = self._pidfd(kind, arguments)
                if kind == "zygote":
                    self._killed_zygote = self._zygote.pid  # its end is heard of later
                send(pidfd, signal.SIGKILL)
                os.close(pidfd)
            case "stop", ("agent" | "zygote"):
                self._stop(self._pidfd(kind, arguments), for_s)
            case (("partition" | "delay"), _):
                by_s = None if verb == "partition" else min(float(arguments["by_s"]), for_s)
                self._mesh.faults.hold(str(arguments["other"]), by_s, for_s)
            case _:
                raise BadRequest(f"chaos: {verb!r} of {kind!r} is not known")
        return {}

    def close(self) -> None:
        """Everything that lasts ends."""
        for pidfd in self._guards:
            send(pidfd, signal.SIGTERM)  # it lets go on what it has stopped
            os.close(pidfd)
        self._guards.clear()
        self._mesh.faults.heal()

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _pidfd(self, kind: str, arguments: Mapping[str, Any]) -> int:
        """Of the process that is meant; the caller's to close."""
        if kind == "zygote":
            if (pid := self._zygote.pid) is None:
                raise Refused("gone", "there is no zygote just now")
            return os.pidfd_open(pid)
        id = AgentId.parse(str(arguments["id"]))
        running = self._executor.of(id)
        if running is None or running.incarnation != arguments.get("incarnation", running.incarnation):
            raise Refused("gone", f"{id} has not that process just now")
        return os.dup(running.pidfd)

    def _stop(self, pidfd: int, for_s: float) -> None:
        try:
            guard = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", standstill.__file__, str(_HANDED_DOWN), f"{for_s:g}"],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, pidfd, _HANDED_DOWN)],
                setsid=True,
            )
        finally:
            os.close(pidfd)
        self._guards = [it for it in self._guards if not _has_ended(it)]
        with suppress(OSError):
            self._guards.append(os.pidfd_open(guard))

    def _audit(self) -> dict[str, Any]:
        """What nobody looks after, and ports that nobody holds."""
        census = self._executor.census()
        living = {int(incarnation) for incarnation in self._executor.running}
        orphans = sorted(pid for pid, incarnation in census.marked.items() if incarnation not in living)
        revision = self._turns.core.desired.revision
        unheld = []
        if revision is not None:
            for id, p in self._turns.core.processes.items():
                host = machine_of(revision.fleet, id.machine).host
                wanted = listening_on(p.spec, host, revision.fleet.security)
                if p.phase is Phase.READY and wanted.keys() - self._executor.sockets.all().get(id, {}).keys():
                    unheld.append(str(id))
        return {"orphans": orphans, "unheld": unheld}


def _has_ended(pidfd: int) -> bool:
    """Then it is closed, too."""
    if not select.select([pidfd], [], [], 0)[0]:
        return False
    os.close(pidfd)
    return True
