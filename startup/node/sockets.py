"""The listening sockets of this machine's agents: opened before there is a process, kept while it is restarted, handed down."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from agentkit.names import AgentId
from startup.node.listeners import PortUnavailable, open_listener

#: Who is to have the socket of an address, and its name there; None: nobody.
Heir: TypeAlias = Callable[[str, int], tuple[AgentId, str] | None]


class AgentSockets:
    """By agent, then by name (`inbox-local`, `inbox`, `http`).

    A socket whose port is another agent's from now on is given to that one, and not closed: others may have dups of it (the fork server,
    a process that is about to end), and as long as they do nobody can bind that port anew."""

    def __init__(self, heir: Heir) -> None:
        self._heir = heir
        self._sockets: dict[AgentId, dict[str, socket.socket]] = {}

    def open(self, id: AgentId, wanted: Mapping[str, tuple[str, int]]) -> Mapping[str, int]:
        """See to it that exactly `wanted` is listened on; name -> descriptor, which stay ours. PortUnavailable: then none is."""
        have = self._sockets.setdefault(id, {})
        for name in [name for name, sock in have.items() if wanted.get(name) != sock.getsockname()[:2]]:
            self._give_up(id, name)
        try:
            for name, (host, port) in wanted.items():
                if name not in have:
                    have[name] = self._opened(host, port)
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
        for name in tuple(self._sockets.get(id, ())):
            self._give_up(id, name)
        self._sockets.pop(id, None)

    def close_all(self) -> None:
        for have in self._sockets.values():
            for sock in have.values():
                sock.close()
        self._sockets.clear()

    def _give_up(self, id: AgentId, name: str) -> None:
        sock = self._sockets[id].pop(name)
        heir = self._heir(*sock.getsockname()[:2])
        if heir is None or heir[0] == id:
            sock.close()
            return
        other, its_name = heir
        if its_name in self._sockets.setdefault(other, {}):
            self._give_up(other, its_name)  # it may be ours from now on
        self._sockets[other][its_name] = sock

    def _opened(self, host: str, port: int) -> socket.socket:
        try:
            return open_listener(host, port)
        except PortUnavailable as exc:
            if exc.taken:
                for have in self._sockets.values():
                    for name, sock in have.items():
                        if sock.getsockname()[:2] == (host, port):
                            return have.pop(name)
            raise


def named(names: str, fds: Sequence[int]) -> dict[str, int]:
    """FDNAME=inbox-local:http and its descriptors; {} when they do not fit together."""
    told = names.split(":") if names else []
    return dict(zip(told, fds, strict=True)) if len(told) == len(fds) else {}
