"""Where an inbox listens, and who may come in there: its addresses, adopted listeners, and the door that those with keys stand at."""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from agentkit.transport import adopt

if TYPE_CHECKING:
    from agentkit.security.ring import Keyring
    from agentkit.transport.door import Door


class Endpoints:
    """Of one ROUTER. Belongs to the inbox that has the socket."""

    def __init__(self, sock: zmq.Socket[Any], on_keys: Callable[[], None]) -> None:
        """`on_keys`: keys came or went, so peers may be somebody else, or nobody."""
        self.door: Door | None = None  #: who comes in by what is encrypted; None: nothing is
        self._sock = sock
        self._on_keys = on_keys

    def guard(self, keys: Keyring) -> None:
        """From now on what is bound can be encrypted. Once."""
        from agentkit.transport.door import Door  # who has no keys does not pay for them

        if self.door is None:
            self.door = Door(self._sock, keys, self._on_keys)

    def bind(self, endpoint: str, *, encrypted: bool) -> str:
        """Listen on `endpoint`; returns the one it got. OSError: it can't be listened on."""
        with self._guarded(encrypted):
            try:
                self._sock.bind(endpoint)
            except zmq.ZMQError as exc:
                raise OSError(exc.errno, f"{endpoint}: {exc.strerror}") from exc
        return bytes(self._sock.last_endpoint).decode()  # type: ignore[arg-type]

    def unbind(self, endpoint: str) -> None:
        """Listen there no more; an endpoint that was not bound is none the worse for it."""
        with contextlib.suppress(zmq.ZMQError):
            self._sock.unbind(endpoint)

    def adopt(self, listener: stdlib_socket.socket, *, encrypted: bool) -> str:
        """Accept on a listener that was handed down; returns its endpoint."""
        with self._guarded(encrypted):
            return adopt.bind_adopted(self._sock, listener)

    def close(self) -> None:
        """After the socket."""
        if self.door is not None:
            self.door.close()

    def _guarded(self, encrypted: bool) -> contextlib.AbstractContextManager[None]:
        if not encrypted:
            return contextlib.nullcontext()
        assert self.door is not None, "an inbox without keys can't encrypt"
        return self.door.encrypted()
