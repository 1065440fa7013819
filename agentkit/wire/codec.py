"""AK1 headers as bytes and back. No sockets; what can't be read raises BadFrame and harms nothing else.

Every header is a msgpack array `[kind, id, fields...]`. A newer peer may append fields: they are ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from agentkit.names import Incarnation
from agentkit.wire import envelope as ak
from agentkit.wire.envelope import Kind, Limits, Message

_pack: Final = msgpack.packb
_unpack: Final = msgpack.unpackb
_ID_LIMIT: Final = 2**63
#: What a NamedTuple's own constructor comes to, which costs 0.3 us more: for the two kinds that every call has.
_new: Final = tuple.__new__

#: Messages in one BATCH, at most: a reader has other things to do between two of them.
MAX_BATCHED: Final = 64


class BadFrame(ValueError):
    """A header that is no AK1 header. `id` is the request's where it could be read, so that it can be answered."""

    def __init__(self, why: str, id: int | None = None) -> None:
        super().__init__(why)
        self.id = id


def encode(message: Message) -> bytes:
    """The header frame of `message`. Text and metadata must be what msgpack knows."""
    return _pack(_FIELDS[type(message)](message))  # type: ignore[no-any-return]


def request_fields(id: int, method: str, budget_ms: int, meta: ak.Meta, flags: int = 0) -> tuple[object, ...]:
    """The header of a REQUEST before packing, for those who pack one per call with a Packer of their own."""
    return (3, id, method, budget_ms, flags, meta)


def reply_fields(id: int) -> tuple[object, ...]:
    """The header of a REPLY without metadata, likewise."""
    return (4, id, {})


def error_fields(error: ak.Error) -> tuple[object, ...]:
    """The header of an ERROR, likewise."""
    return (5, *error)


def chunk_fields(id: int, seq: int) -> tuple[object, ...]:
    """The header of a CHUNK, likewise."""
    return (6, id, seq)


def end_fields(id: int) -> tuple[object, ...]:
    """The header of an END, likewise."""
    return (7, id)


def credit_fields(id: int, n: int) -> tuple[object, ...]:
    """The header of a CREDIT, likewise."""
    return (8, id, n)


def batch_fields(items: list[object]) -> tuple[object, ...]:
    """The header of a BATCH: the fields of a message and its body (or None) in turn."""
    return (14, 0, items)


def decode(header: bytes) -> Message:
    """The message that a header frame holds; BadFrame for garbage, unknown kinds and wrong types."""
    try:
        fields = _unpack(header)
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        raise BadFrame(f"header is no msgpack: {type(exc).__name__}") from exc
    return read(fields)


def read(fields: object) -> Message:
    """The message whose header has these fields, as an item of a BATCH has them; BadFrame like `decode`."""
    if type(fields) is not list or len(fields) < 2 or type(fields[0]) is not int or type(fields[1]) is not int:
        raise BadFrame("header is no array of kind and id")
    kind, id = fields[0], fields[1]
    if not 0 <= id < _ID_LIMIT:
        raise BadFrame("id is out of range")
    build = _BUILDERS.get(kind)
    if build is None:
        raise BadFrame(f"unknown kind {kind}", id)
    try:
        return build(fields)
    except (IndexError, TypeError, ValueError) as exc:
        raise BadFrame(f"{Kind(fields[0]).name} with wrong fields: {exc}", id) from exc


def _is(value: Any, wanted: type, what: str) -> Any:
    if type(value) is not wanted:
        raise TypeError(f"{what} is {type(value).__name__}, want {wanted.__name__}")
    return value


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < _ID_LIMIT:
        raise TypeError(f"{what} is no number from 0 on")
    return value


def _request(f: list[Any]) -> ak.Request:
    _, id, method, budget_ms, flags, meta = f[:6]
    if type(method) is not str or type(budget_ms) is not int or type(flags) is not int or type(meta) is not dict:
        raise TypeError("want method: str, budget_ms: int, flags: int, meta: map")
    if not 0 <= budget_ms <= ak.MAX_BUDGET_MS:
        raise ValueError("budget_ms is out of range")
    return _new(ak.Request, (id, method, budget_ms, flags, meta))


def _reply(f: list[Any]) -> ak.Reply:
    return _new(ak.Reply, (f[1], _is(f[2], dict, "meta")))


def _error(f: list[Any]) -> ak.Error:
    return ak.Error(
        f[1],
        _is(f[2], str, "code"),
        _is(f[3], str, "message"),
        _is(f[4], bool, "retry_safe"),
        _is(f[5], dict, "details"),
    )


def _batch(f: list[Any]) -> ak.Batch:
    items = _is(f[2], list, "items")
    if len(items) % 2 or not 0 < len(items) <= 2 * MAX_BATCHED:
        raise ValueError(f"want 1 to {MAX_BATCHED} pairs of header and body")
    return ak.Batch(items)


def _limits(value: Any) -> Limits:
    known = _is(value, dict, "limits")
    numbers = {key: known[key] for key in Limits._fields if key in known}
    if any(type(number) is not int or number < 1 for number in numbers.values()):
        raise ValueError("limits are positive integers")
    return Limits(**numbers)


def _introduction(kind: type[Any]) -> Callable[[list[Any]], Any]:
    def build(f: list[Any]) -> Any:
        capabilities = tuple(_is(word, str, "capability") for word in _is(f[6], list, "capabilities"))
        return kind(
            _is(f[2], int, "version"),
            _is(f[3], str, "name"),
            _is(f[4], str, "instance"),
            Incarnation(_is(f[5], int, "incarnation")),
            capabilities,
            _limits(f[7]),
        )

    return build


def _introduce(kind: Kind) -> Callable[[Any], tuple[Any, ...]]:
    return lambda m: (
        kind.value, 0, m.version, m.name, m.instance, m.incarnation, list(m.capabilities), m.limits._asdict(),
    )  # fmt: skip


_FIELDS: Final[Mapping[type, Callable[[Any], tuple[Any, ...]]]] = {
    ak.Hello: _introduce(Kind.HELLO),
    ak.Welcome: _introduce(Kind.WELCOME),
    ak.Request: lambda m: (3, m.id, m.method, m.budget_ms, m.flags, m.meta),
    ak.Reply: lambda m: (4, m.id, m.meta),
    ak.Error: lambda m: (5, m.id, m.code, m.message, m.retry_safe, m.details),
    ak.Chunk: lambda m: (6, m.id, m.seq),
    ak.End: lambda m: (7, m.id),
    ak.Credit: lambda m: (8, m.id, m.n),
    ak.Cancel: lambda m: (9, m.id),
    ak.GoAway: lambda m: (10, 0, m.reason, m.last_id),
    ak.Bye: lambda _: (11, 0),
    ak.Ping: lambda m: (12, m.id),
    ak.Pong: lambda m: (13, m.id),
    ak.Batch: lambda m: (14, 0, m.items),
}

_BUILDERS: Final[Mapping[int, Callable[[list[Any]], Message]]] = {
    Kind.HELLO.value: _introduction(ak.Hello),
    Kind.WELCOME.value: _introduction(ak.Welcome),
    Kind.REQUEST.value: _request,
    Kind.REPLY.value: _reply,
    Kind.ERROR.value: _error,
    Kind.CHUNK.value: lambda f: ak.Chunk(f[1], _count(f[2], "seq")),
    Kind.END.value: lambda f: ak.End(f[1]),
    Kind.CREDIT.value: lambda f: ak.Credit(f[1], _count(f[2], "n")),
    Kind.CANCEL.value: lambda f: ak.Cancel(f[1]),
    Kind.GOAWAY.value: lambda f: ak.GoAway(_is(f[2], str, "reason"), _is(f[3], int, "last_id")),
    Kind.BYE.value: lambda _: ak.Bye(),
    Kind.PING.value: lambda f: ak.Ping(f[1]),
    Kind.PONG.value: lambda f: ak.Pong(f[1]),
    Kind.BATCH.value: _batch,
}
