"""One event on its way: what a frame holds. Without sockets.

    frame    topic " " msgpack [version, publisher, life, number, at, payload]

`number` counts what this life of the publisher has published on this topic, from 1: a subscriber sees only some topics, and must
be able to tell what it missed from what it did not ask for. `life` is the publisher's incarnation, so that a number that starts
again is no loss; `at` its clock, in seconds since the epoch.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from agentkit.errors import TooLarge
from agentkit.events.registry import type_of
from agentkit.events.topics import END, MAX_TOPIC_BYTES, is_topic, topic_bytes
from agentkit.wire import values

#: Longest frame, in bytes. With the queues of transport/pubsub.py it bounds what a subscriber that never reads can cost: 128 MB.
MAX_EVENT_BYTES: Final = 32 * 1024

_VERSION: Final = 1
_FIELDS: Final = 6


class Delivery(NamedTuple):
    """One event as it arrived. Handlers and `Client.subscribe` that want more than the event get this."""

    topic: str
    data: Any  #: the event's fields, plain
    publisher: str  #: `machine/name#slot`, or a script's name
    life: int  #: of the publisher: grows with every restart
    number: int  #: of this event among those of this life and topic
    at_s: float  #: when it was published, by the publisher's clock, in seconds since the epoch
    lost: int = 0  #: how many of this publisher and topic were missed right before it

    @property
    def event(self) -> Any:
        """The event as the class that has its topic here; `data` where none has. ValidationError when it does not fit."""
        model = type_of(self.topic)
        return self.data if model is None else model.__pydantic_validator__.validate_python(self.data)

    @property
    def at(self) -> datetime:
        """`at_s` in UTC."""
        return datetime.fromtimestamp(self.at_s, UTC)


def encode(
    packer: values.Packer, topic: str, publisher: str, life: int, number: int, at_s: float, payload: object
) -> bytes:
    """A frame. Unsendable: a value that does not travel; TooLarge: refer to large things, don't send them."""
    frame = topic_bytes(topic) + packer.pack((_VERSION, publisher, life, number, at_s, payload))
    if len(frame) > MAX_EVENT_BYTES:
        raise TooLarge(
            f"{topic}: an event of {len(frame):,} bytes, at most {MAX_EVENT_BYTES:,} are sent; publish where it is, not what it is",
            details={"size_bytes": len(frame), "limit_bytes": MAX_EVENT_BYTES},
        )
    return frame


def topic_in(frame: bytes) -> bytes:
    """The topic that a frame begins with; empty when there is none."""
    end = frame.find(END, 0, MAX_TOPIC_BYTES + 1)
    return frame[:end] if end > 0 else b""


def decode(topic: str, frame: bytes) -> Delivery:
    """What a frame of `topic` holds; Undecodable when that is no event of ours."""
    fields = values.unpack(frame[len(topic) + 1 :])
    # not `match`: this is half of what receiving an event costs
    if type(fields) is list and len(fields) == _FIELDS and fields[0] == _VERSION:
        _, publisher, life, number, at_s, payload = fields
        if type(publisher) is str and type(life) is int and type(number) is int and number > 0 and type(at_s) is float:
            return Delivery(topic, payload, publisher, life, number, at_s)
    raise values.Undecodable(f"no event: {str(fields)[:100]}")


def readable_topic(raw: bytes) -> str | None:
    """A frame's topic as text; None when nobody may have published that."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        return None
    return text if is_topic(text) else None
