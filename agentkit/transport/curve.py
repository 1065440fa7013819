"""CURVE on a socket: which key it speaks with, which it expects, and ZeroMQ's questions about who may come in.

Options count for what is bound or connected after they were set: one ROUTER takes plain connections on one address and encrypted
ones on another. Imported only where there are keys."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import zmq

from agentkit.security.keys import Key
from agentkit.security.ring import Keyring
from agentkit.security.roles import Holder
from agentkit.security.zap import ADDRESS, answer
from agentkit.transport.reader import Reader

_domains = itertools.count(1)


class Doorkeeper:
    """Answers for one context: libzmq asks each about its own connections only. One reader on the loop, no thread.

    A loop that is blocked answers later, as it does everything else later; no connection comes in unanswered."""

    _of: Final[dict[int, Doorkeeper]] = {}

    def __init__(self, context: zmq.Context[Any]) -> None:
        self._context = context
        self._rings: dict[str, Keyring] = {}
        self._sock: zmq.Socket[bytes] = context.socket(zmq.REP)
        self._sock.linger = 0
        self._sock.bind(ADDRESS)
        self._reader = Reader(self._sock, self._on_question)
        self._loop = asyncio.get_running_loop()

    @classmethod
    def let_in(cls, context: zmq.Context[Any], ring: Keyring) -> str:
        """From now on a socket of `context` with the ZAP domain that is returned lets in who is known to `ring`."""
        keeper = cls._of.get(id(context))
        if keeper is None:
            keeper = cls._of[id(context)] = cls(context)
        domain = f"agentkit-{next(_domains)}"
        keeper._rings[domain] = ring
        return domain

    @classmethod
    def end(cls, context: zmq.Context[Any], domain: str) -> None:
        """Nobody comes in there any more."""
        keeper = cls._of.get(id(context))
        if keeper is not None:
            keeper._rings.pop(domain, None)
            if not keeper._rings:
                del cls._of[id(context)]
                keeper._reader.close()
                keeper._sock.unbind(ADDRESS)  # at once; closing takes its time, and the next one may be made before
                keeper._sock.close(linger=0)

    def _on_question(self, question: list[bytes]) -> None:
        # The monitor tells why somebody was refused. A reply that finds no room is one to a connection that has gone.
        self._sock.send_multipart(answer([bytes(frame) for frame in question], self._known), zmq.NOBLOCK)

    def _known(self, domain: str, public: str) -> Holder | None:
        ring = self._rings.get(domain)
        return ring.holder(public) if ring is not None else None


@contextmanager
def serving(sock: zmq.Socket[Any], own: Key, domain: str) -> Iterator[None]:
    """What is bound within is encrypted, and lets in who is known to the ring of `domain`.

    What is bound without encryption has to be bound before: a ZAP domain can't be taken back, and lets in nobody without CURVE."""
    sock.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
    # without it libzmq lets everybody in as long as nobody answers its questions
    sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    sock.curve_secretkey = own.secret.encode()
    sock.curve_publickey = own.public.encode()
    sock.curve_server = True
    try:
        yield
    finally:
        sock.curve_server = False


def calling(sock: zmq.Socket[Any], own: Key, server: str) -> None:
    """What is connected from now on speaks as `own`, and with nobody but the holder of the public key `server`."""
    sock.curve_publickey = own.public.encode()
    sock.curve_secretkey = own.secret.encode()
    sock.curve_serverkey = server.encode()
