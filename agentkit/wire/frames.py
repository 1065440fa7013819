"""The control conversation: msgpack objects on a unix stream socket, each behind a four-byte big-endian length.

Spoken between CLI and node, and between agents (directory) and node:

    request   [id, operation, arguments]         id: a number chosen by the asking side, never reused on a connection
    answers   [id, "event", object] *            for operations that go on telling (watch)
              [id, "ok", result]                 the last answer, or
              [id, "error", {code, message, retry_safe, details}]

Kept apart from AK1 because the CLI must answer in under 100 ms: this needs neither ZeroMQ nor an event loop.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgpack

from agentkit.errors import BadRequest, TooLarge

#: Longest object taken from the other side, in bytes: a fleet of 1,000 agents resolved is about 2 MB.
MAX_FRAME_BYTES: Final = 32 * 1024 * 1024

_LENGTH: Final = struct.Struct(">I")


def pack(message: object) -> bytes:
    """`message` as one frame, length included; TooLarge when nobody would take it."""
    body = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise TooLarge.frame("control message", len(body), MAX_FRAME_BYTES)
    return bytes(_LENGTH.pack(len(body)) + body)


class FrameBuffer:
    """Cuts a stream of bytes into messages. Feed it what arrives, then take what is whole."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Add `data`; yield each message that is now complete. BadRequest or TooLarge: the stream is no use any more."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._bytes)
            if size > MAX_FRAME_BYTES:
                raise TooLarge.frame("control message", size, MAX_FRAME_BYTES)
            end = _LENGTH.size + size
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[_LENGTH.size : end])
            del self._bytes[:end]
            try:
                yield msgpack.unpackb(body, strict_map_key=False)
            except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as exc:
                raise BadRequest(f"control message is no msgpack: {exc}") from exc
