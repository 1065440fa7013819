"""The listening sockets of this machine's agents: opened before there is a process, kept while it is restarted, handed down."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from agentkit.names import AgentId
from startup.node.listeners import open_listener


class AgentSockets:
    """By agent, then by name (`inbox-local`, `inbox`, `http`)."""

    def __init__(self) -> None:
        self._sockets: dict[AgentId, dict[str, socket.socket]] = {}

    def open(self, id: AgentId, wanted: Mapping[str, tuple[str, int]]) -> Mapping[str, int]:
        """See to it that exactly `wanted` is listened on; name -> descriptor, which stay ours. PortUnavailable: then none is."""
        have = self._sockets.setdefault(id, {})
        for name in [name for name, sock in have.items() if wanted.get(name) != sock.getsockname()[:2]]:
            have.pop(name).close()
        try:
            for name, (host, port) in wanted.items():
                if name not in have:
                    have[name] = open_listener(host, port)
        except Exception:
            self.close(id)
            raise
        return {name: have[name].fileno() for name in wanted}

    def take(self, id: AgentId, fds: Mapping[str, int]) -> None:
        """Descriptors from the zygote, or from an agent that outlived its node. What we have already is closed."""
        have = self._sockets.setdefault(id, {})
        for name, fd in fds.items():
            given = socket.socket(fileno=fd)
            if name in have:
                given.close()
            else:
                given.setblocking(False)
                have[name] = given

    def has(self, id: AgentId) -> bool:
        return bool(self._sockets.get(id))

    def all(self) -> dict[AgentId, dict[str, int]]:
        return {id: {name: sock.fileno() for name, sock in have.items()} for id, have in self._sockets.items() if have}

    def close(self, id: AgentId) -> None:
        """Callers are refused from now on. Plain close: `shutdown` would abort every process that shares the socket."""
        for sock in self._sockets.pop(id, {}).values():
            sock.close()

    def close_all(self) -> None:
        for id in tuple(self._sockets):
            self.close(id)


def named(names: str, fds: Sequence[int]) -> dict[str, int]:
    """FDNAME=inbox-local:http and its descriptors; {} when they do not fit together."""
    told = names.split(":") if names else []
    return dict(zip(told, fds, strict=True)) if len(told) == len(fds) else {}
