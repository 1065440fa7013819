"""The one `zmq.Context` of a process, and what every socket made here is set to."""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import zmq

from agentkit.errors import Unreachable

#: How long the end of the context is waited for, in seconds: longer than any socket lingers.
TERM_S: Final = 1.0

_lock = threading.Lock()
_context: zmq.Context[Any] | None = None
_owner_pid = 0


def context() -> zmq.Context[Any]:
    """This process's context, made on first use. Never before a fork: the child of a process that has one gets its own."""
    global _context, _owner_pid
    with _lock:
        if _context is None or _owner_pid != os.getpid() or _context.closed:
            _context, _owner_pid = zmq.Context(), os.getpid()
            # The default of 1,023 is 500 channels (each has a monitor). libzmq touches 12 bytes for each at once:
            # with 65,535 every agent was 0.8 MB larger.
            _context.max_sockets = 4_095
        return _context


def close_context() -> None:
    """Ends the context, waiting for lingering sends, which every socket limits, but not for a socket that some thread of the
    author's has open and never closes."""
    global _context
    with _lock:
        ended, _context = _context, None
    if ended is not None and _owner_pid == os.getpid() and not ended.closed:
        ending = threading.Thread(target=ended.term, name="context-end", daemon=True)
        ending.start()
        ending.join(TERM_S)


def no_socket_left(error: zmq.ZMQError) -> Unreachable:
    """What a caller is told when a process is out of descriptors (each channel takes four) or of ZeroMQ's own sockets (three)."""
    return Unreachable(
        f"no socket left in this process: {error.strerror}; raise its `ulimit -n`, or call fewer agents at once"
    )


def socket(kind: int, *, max_frame_bytes: int) -> zmq.Socket[bytes]:
    """A socket of `kind` with the settings that all of ours share. Unreachable when the process may not open any more."""
    try:
        sock: zmq.Socket[bytes] = context().socket(kind)
    except zmq.ZMQError as exc:
        raise no_socket_left(exc) from exc
    sock.linger = 0
    sock.maxmsgsize = max_frame_bytes
    sock.ipv6 = True
    return sock
