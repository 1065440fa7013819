"""The sockets of agents that sleep: who connects to an inbox is noticed, never accepted, and who asks for health is answered here.

Watching begins when nothing is left of the agent's process. It is level triggered, so whoever came in between is seen, too: a
connection that is made while an agent falls asleep waits in the kernel's queue, and wakes it. Before the next process is forked
everything here lets go, so that it gets what comes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

from agentkit.names import AgentId
from agentkit.observe.log import get_logger
from startup.node.hibernation.health_server import Answer, HealthServer

log = get_logger("node.hibernation")

_HTTP: Final = "http"
#: Out of descriptors, who asks for health is looked at again after so long, in seconds.
_PAUSE_S: Final = 1.0


class SocketActivation:
    """Those of one node. `watch` and `release` are for the loop's thread and may come in any order."""

    def __init__(self, *, on_knock: Callable[[AgentId], None], answer: Callable[[AgentId, str], Answer]) -> None:
        """`on_knock`: somebody has connected to an inbox, told once. `answer`: what is said of a sleeper at a path of its health port."""
        self._loop = asyncio.get_running_loop()
        self._on_knock = on_knock
        self._health_server = HealthServer(answer)
        self._inboxes: dict[AgentId, list[int]] = {}
        self._health: dict[AgentId, socket.socket] = {}

    def __contains__(self, id: AgentId) -> bool:
        return id in self._inboxes

    def watch(self, id: AgentId, listeners: Mapping[str, int]) -> None:
        """Watch dups of `listeners` (name -> descriptor, which stay the caller's)."""
        self.release(id)
        watched = self._inboxes[id] = [os.dup(fd) for name, fd in listeners.items() if name != _HTTP]
        for fd in watched:
            self._loop.add_reader(fd, self._knocked, id)
        if _HTTP in listeners:
            sock = self._health[id] = socket.socket(fileno=os.dup(listeners[_HTTP]))
            self._loop.add_reader(sock, self._asked, id, sock)

    def release(self, id: AgentId) -> None:
        """Let go of its sockets; nothing to do when they are not held. Plain close: others share them."""
        self._forget_inboxes(id)
        self._inboxes.pop(id, None)
        if (sock := self._health.pop(id, None)) is not None:
            self._loop.remove_reader(sock)
            sock.close()

    def close(self) -> None:
        for id in tuple(self._inboxes):
            self.release(id)
        self._health_server.close()

    def _knocked(self, id: AgentId) -> None:
        self._forget_inboxes(id)  # level triggered, and once is enough
        self._on_knock(id)

    def _asked(self, id: AgentId, sock: socket.socket) -> None:
        if not self._health_server.receive(id, sock):
            log.warning("sleepers.no_descriptor", agent=str(id), again_in_s=_PAUSE_S)
            self._loop.remove_reader(sock)
            self._loop.call_later(_PAUSE_S, self._ask_again, id, sock)

    def _ask_again(self, id: AgentId, sock: socket.socket) -> None:
        if self._health.get(id) is sock:
            self._loop.add_reader(sock, self._asked, id, sock)

    def _forget_inboxes(self, id: AgentId) -> None:
        for fd in self._inboxes.get(id, ()):
            self._loop.remove_reader(fd)
            os.close(fd)
        if id in self._inboxes:
            self._inboxes[id] = []
