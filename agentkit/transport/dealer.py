"""The socket of a channel, with an event loop (channel.py) or without (blocking.py)."""

from __future__ import annotations

from typing import Final

import zmq

from agentkit.transport import context
from agentkit.wire.envelope import Limits

#: Longest time from connect to WELCOME, in ms: a process that is only now being started accepts within its start limit.
HANDSHAKE_MS: Final = 120_000
#: A host that does not answer at all is given up after this, in ms.
CONNECT_MS: Final = 3_000


def opened(limits: Limits) -> zmq.Socket[bytes]:
    """A DEALER that connects once and never again. Unreachable when the process may not open any more sockets."""
    sock = context.socket(zmq.DEALER, max_frame_bytes=limits.frame_bytes)
    sock.reconnect_ivl = -1
    sock.handshake_ivl = HANDSHAKE_MS
    sock.connect_timeout = CONNECT_MS
    return sock
