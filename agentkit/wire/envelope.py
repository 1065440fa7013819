"""The kinds of AK1 messages, as values (docs/protocol.md). Pure data: codec.py turns them into frames.

A message is one header frame, then for REQUEST, REPLY and CHUNK one body frame and any number of attachments."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple

from agentkit.names import Incarnation

#: The version of AK1 spoken here. A peer with another one is refused with `unsupported_version`.
AK1_VERSION: Final = 1

#: Budget of a REQUEST, in ms, that can't be exceeded: 24 days; a deadline is mandatory and nobody waits for ever.
MAX_BUDGET_MS: Final = 2**31 - 1

Meta = Mapping[str, Any]

#: Flags of a REQUEST: the caller reads a stream of results; it sends a stream of its own (`meta` names the parameter).
TAKES_STREAM: Final = 1
GIVES_STREAM: Final = 2
#: Where `meta` names the parameter that a caller's stream is for.
STREAM_KEY: Final = "stream"

#: Capability in HELLO and WELCOME: whoever says it understands BATCH.
BATCHES: Final = "batch"

#: Capability in HELLO: this caller reads only while it calls, so it can't answer GOAWAY by BYE while it is idle.
READS_ONLY_IN_CALLS: Final = "reads-only-in-calls"


class Kind(IntEnum):
    """First field of every header."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    REPLY = 4
    ERROR = 5
    CHUNK = 6
    END = 7
    CREDIT = 8
    CANCEL = 9
    GOAWAY = 10
    BYE = 11
    PING = 12
    PONG = 13
    BATCH = 14


class Limits(NamedTuple):
    """What a side accepts; stated in WELCOME (and, for what it will be sent, in HELLO)."""

    frame_bytes: int = 16 * 1024 * 1024  # also ZMQ_MAXMSGSIZE, where libzmq cuts the connection without a word
    attachments: int = 64
    in_flight: int = 1024  # calls of one channel that are running or waiting
    stream_bytes: int = 1024 * 1024  # of one stream, that may be under way unread; then its sender waits for CREDIT


class Hello(NamedTuple):
    """First message of a channel: who calls, and which life of the callee is expected (0: any)."""

    version: int
    name: str
    instance: str
    incarnation: Incarnation
    capabilities: tuple[str, ...] = ()
    limits: Limits = Limits()


class Welcome(NamedTuple):
    """The callee's answer to HELLO: its own name, life and limits. Requests may follow."""

    version: int
    name: str
    instance: str
    incarnation: Incarnation
    capabilities: tuple[str, ...] = ()
    limits: Limits = Limits()


class Request(NamedTuple):
    id: int
    method: str
    budget_ms: int  # what is left of the caller's deadline; relative, because clocks differ
    flags: int  # TAKES_STREAM, GIVES_STREAM; unknown ones are ignored
    meta: Meta


class Reply(NamedTuple):
    id: int
    meta: Meta


class Error(NamedTuple):
    id: int  # 0: about the connection, not about a call
    code: str
    message: str
    retry_safe: bool
    details: Meta


class Cancel(NamedTuple):
    id: int


class GoAway(NamedTuple):
    """I am draining: requests with an id above `last_id` were not and will not be run here."""

    reason: str
    last_id: int


class Bye(NamedTuple):
    """The caller has its last answer and closes the channel."""


class Ping(NamedTuple):
    id: int


class Pong(NamedTuple):
    id: int


class Chunk(NamedTuple):
    """One value of a stream, from whichever side sends it; the body follows."""

    id: int  # of the REQUEST that the stream belongs to
    seq: int  # from 0, without gaps


class End(NamedTuple):
    """The caller's stream is complete. (The callee's ends with its REPLY or ERROR.)"""

    id: int


class Credit(NamedTuple):
    """The reader of a stream has used `n` more bytes: its sender may send as many."""

    id: int
    n: int


class Batch(NamedTuple):
    """Several messages without attachments in one frame: the fields of a header and its body (or None) in turn."""

    items: list[Any]


Message = Hello | Welcome | Request | Reply | Error | Chunk | End | Credit | Cancel | GoAway | Bye | Ping | Pong | Batch
