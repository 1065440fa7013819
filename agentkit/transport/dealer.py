"""The socket of a channel, with an event loop (channel.py) or without (blocking.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import zmq

from agentkit.errors import CallError, Unauthenticated
from agentkit.transport import context
from agentkit.transport.monitor import REFUSED
from agentkit.wire.envelope import Limits

if TYPE_CHECKING:
    from agentkit.security.keys import Key

#: Longest time from connect to WELCOME, in ms: a process that is only now being started accepts within its start limit.
HANDSHAKE_MS: Final = 120_000
#: A host that does not answer at all is given up after this, in ms.
CONNECT_MS: Final = 3_000


#: One side encrypts, the other does not (value of EVENT_HANDSHAKE_FAILED_PROTOCOL).
_MISMATCH: Final = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)


class Dial(NamedTuple):
    """How a connection is encrypted."""

    own: Key  #: as whom we come
    server: str  #: the public key of whom we expect there


def opened(limits: Limits, dial: Dial | None = None) -> zmq.Socket[bytes]:
    """A DEALER that connects once and never again. Unreachable when the process may not open any more sockets."""
    sock = context.socket(zmq.DEALER, max_frame_bytes=limits.frame_bytes)
    sock.reconnect_ivl = -1
    sock.handshake_ivl = HANDSHAKE_MS
    sock.connect_timeout = CONNECT_MS
    if dial is not None:
        from agentkit.transport import curve

        curve.calling(sock, *dial)
    return sock


def refusal(label: str, event: int, value: int, dial: Dial | None) -> CallError | None:
    """What a monitor event means for the calls that wait, when it says that the peer does not want us: another try is no use."""
    if event == REFUSED:
        who = f"our key {dial.own.fingerprint} ({dial.own.name})" if dial is not None else "our key"
        return Unauthenticated(f"{label} does not accept {who}: `agentkit keys list` there shows whom it knows")
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MISMATCH:
        if dial is None:
            return Unauthenticated(f"{label} takes encrypted connections only, and we have no key for it")
        return Unauthenticated(f"{label} does not encrypt at that address, so nobody knows who it is: not called")
    return None


def lost_because(event: int, dial: Dial | None) -> str:
    """Why a connection went, as far as the monitor's event tells."""
    if dial is not None and event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return "the handshake was broken off (it may not have the key that we expect)"
    return "its connection went"
