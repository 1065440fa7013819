"""Listening sockets handed down by whoever started us: systemd's convention, LISTEN_FDS and LISTEN_FDNAMES."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

import zmq

from agentkit.errors import ConfigError

#: The first descriptor that is handed down (sd_listen_fds(3)).
FIRST_FD: Final = 3


def adopted(environ: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """The sockets handed down, by name, checked; {} when there are none or they are meant for another process.

    Takes the variables out of `environ`, so that no child of ours believes that they are for it. ConfigError when a
    descriptor is no listening stream socket: ZeroMQ would abort the process over it."""
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "")
    pid = environ.pop("LISTEN_PID", "")
    if not count or (pid and pid != str(os.getpid())):
        return {}
    if not count.isdigit():
        raise ConfigError(
            at="LISTEN_FDS", got=count, want="a number of descriptors", fix="unset it when starting by hand"
        )
    listeners: dict[str, socket.socket] = {}
    listed = names.split(":") if names else []
    for i in range(int(count)):
        fd = FIRST_FD + i
        name = listed[i] if i < len(listed) else f"fd{fd}"
        listeners[name] = _checked(fd, name)
    return listeners


def _checked(fd: int, name: str) -> socket.socket:
    place = f"descriptor {fd} ({name}) of LISTEN_FDS"
    try:
        sock = socket.socket(fileno=fd)
        is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise ConfigError(at=place, got=os.strerror(exc.errno or 0), want="a listening socket") from exc
    if not is_listening:
        sock.detach()  # not ours, so not ours to close
        raise ConfigError(at=place, got="a socket that does not listen", want="one after listen()")
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        family = sock.family.name
        sock.detach()
        raise ConfigError(at=place, got=f"a socket of family {family}", want="a TCP socket")
    # libzmq does not do it itself, and a blocking listener shared by two processes froze an IO thread 3 times in 200
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    return sock


def bind_adopted(sock: zmq.Socket[bytes], listener: socket.socket) -> str:
    """Let `sock` accept on `listener`; returns the endpoint that it has. `listener` stays open and the caller's.

    libzmq owns and closes the descriptor it gets, so it gets a dup; USE_FD would apply to every later bind, so it is unset."""
    host, port = listener.getsockname()[:2]
    endpoint = f"tcp://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"tcp://{host}:{port}"
    sock.setsockopt(zmq.USE_FD, os.dup(listener.fileno()))
    try:
        sock.bind(endpoint)
    finally:
        sock.setsockopt(zmq.USE_FD, -1)
    return endpoint


def endpoints(listeners: Mapping[str, socket.socket]) -> dict[str, str]:
    """Where each listener is reached."""
    found = {}
    for name, listener in listeners.items():
        host, port = listener.getsockname()[:2]
        found[name] = f"tcp://{host}:{port}"
    return found


def opened(host: str, port: int, variable: str) -> socket.socket:
    """A listening socket of our own, where none was handed down; ConfigError names `variable`, which chose the port."""
    try:
        return socket.create_server(
            (host, port), backlog=4096, family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as exc:
        raise ConfigError(
            at=variable, got=f"{host}:{port}: {os.strerror(exc.errno or 0)}", want="an address and port that are free"
        ) from exc
