"""ZeroMQ asks for every new CURVE connection who may come in (ZAP, RFC 27): its question as bytes in, our answer as bytes out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from zmq.utils import z85

from agentkit.security.roles import Holder

#: Where libzmq asks, in every context.
ADDRESS: Final = "inproc://zeromq.zap.01"

_VERSION: Final = b"1.0"
_KEY_BYTES: Final = 32


def answer(question: Sequence[bytes], known: Callable[[str, str], Holder | None]) -> list[bytes]:
    """The reply to one question. `known(domain, public key in Z85)`: whose key it is, or None.

    Who is let in has the public key as `User-Id`: who that is may change while the connection lives."""
    id = question[1] if len(question) > 1 else b""
    if len(question) != 7 or question[0] != _VERSION or question[5] != b"CURVE" or len(question[6]) != _KEY_BYTES:
        return [_VERSION, id, b"400", b"CURVE only", b"", b""]
    public = z85.encode(question[6])
    if known(question[2].decode("ascii", "replace"), public.decode()) is None:
        return [_VERSION, id, b"400", b"unknown key", b"", b""]
    return [_VERSION, id, b"200", b"OK", public, b""]
