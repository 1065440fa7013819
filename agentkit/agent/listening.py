"""The sockets on which one agent is reached: handed down by its node or systemd, or opened by itself."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from agentkit.directory.base import INBOX, INBOX_LOCAL
from agentkit.settings import AgentSettings
from agentkit.transport import adopt

#: Name of the socket for health and metrics.
HTTP: Final = "http"


class Listening:
    """By name: `inbox-local`, `inbox`, `http`. Whoever calls before they are served waits in the kernel's backlog."""

    def __init__(self, handed_down: Mapping[str, socket.socket]) -> None:
        self.sockets = dict(handed_down)
        self.encrypted: frozenset[str] = frozenset()  #: names of those that serve with a key

    def open(self, settings: AgentSettings) -> None:
        """What was not handed down. StartupError: a port is taken."""
        if INBOX_LOCAL not in self.sockets and INBOX not in self.sockets:
            self.sockets[INBOX_LOCAL] = adopt.opened(settings.host, settings.port, "PORT")
        if HTTP not in self.sockets and settings.health_port is not None:
            self.sockets[HTTP] = adopt.opened(settings.host, settings.health_port, "HEALTH_CHECK_PORT")

    @property
    def inboxes(self) -> list[tuple[socket.socket, bool]]:
        """With whether each is encrypted; plain ones first: Inbox.bind."""
        names = [name for name in (INBOX_LOCAL, INBOX) if name in self.sockets]
        names.sort(key=self.encrypted.__contains__)
        return [(self.sockets[name], name in self.encrypted) for name in names]

    @property
    def hosts(self) -> dict[str, str]:
        """The addresses that those are bound to which the agent serves."""
        served = (INBOX_LOCAL, INBOX, HTTP)
        return {name: str(self.sockets[name].getsockname()[0]) for name in served if name in self.sockets}

    @property
    def http(self) -> socket.socket | None:
        """The health port's; None: the agent has none."""
        return self.sockets.get(HTTP)

    @property
    def port(self) -> int:
        """That of its inbox: on loopback where it listens there, else on the machine's address."""
        return _port(self.sockets.get(INBOX_LOCAL) or self.sockets[INBOX])

    @property
    def health_port(self) -> int | None:
        """None: it has none."""
        return _port(self.sockets[HTTP]) if HTTP in self.sockets else None

    def close(self) -> None:
        """Ours only: who handed them down has its own."""
        for listener in self.sockets.values():
            listener.close()


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])
