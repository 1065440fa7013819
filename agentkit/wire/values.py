"""Python values as msgpack bodies. What crosses is plain; the receiver's annotations make it typed again.

in Python                                   on the wire
None bool int float str bytes list dict     themselves (integers of up to 64 bits)
datetime with a time zone                   the msgpack timestamp; arrives in UTC
datetime without, date, time                ISO 8601 text
timedelta                                   seconds, as a float
UUID, Decimal, Path                         text
Enum                                        its value
dataclass, pydantic model, NamedTuple       a map of its fields (NamedTuple: an array)
tuple, set, frozenset, deque                an array
a number of numpy's                         a number
a numpy array                               an array; as the array that it is where attachments travel (attachments.py)
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import msgpack
from pydantic import BaseModel
from pydantic.fields import FieldInfo

#: A packer's buffer grows to its largest value; above this it is given back, in bytes.
MAX_KEPT_BYTES: Final = 256 * 1024
#: What is sent of an error's text, in characters, and of its details, in bytes.
MAX_ERROR_TEXT: Final = 8 * 1024
MAX_DETAILS_BYTES: Final = 64 * 1024
MAX_DETAILS_DEPTH: Final = 8


class Unsendable(TypeError):
    """A value that AK1 has no form for."""


class Undecodable(ValueError):
    """A body that is no msgpack."""


class Packer:
    """Makes bodies and headers. For one thread only: keeping the buffer makes a body cost 0.3 us instead of 0.9."""

    def __init__(self) -> None:
        self._packer = self._new()

    @staticmethod
    def _new() -> msgpack.Packer:
        return msgpack.Packer(default=to_plain, datetime=True)

    def pack(self, value: object) -> bytes:
        """`value` as bytes; Unsendable names the type that does not travel."""
        try:
            packed: bytes = self._packer.pack(value)
        except Exception as exc:  # a property of the author's may raise anything
            self._packer.reset()  # half a value is left in the buffer
            raise Unsendable(str(exc) or type(exc).__name__) from exc
        if len(packed) > MAX_KEPT_BYTES:
            self._packer = self._new()
        return packed


def pack(value: object) -> bytes:
    """`value` as a body, from any thread; Unsendable names the type that does not travel."""
    return Packer().pack(value)


def unpack(body: bytes) -> Any:
    """The plain value of a body; Undecodable when it is none."""
    return decode(body, msgpack.ExtType)


def decode(body: bytes, extension: Callable[[int, bytes], Any]) -> Any:
    """The same with somebody who knows what extensions mean."""
    try:
        return msgpack.unpackb(body, timestamp=3, strict_map_key=False, ext_hook=extension)
    except Undecodable:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError, OverflowError) as exc:
        raise Undecodable(f"body is no msgpack: {type(exc).__name__}") from exc


def _key(name: str, field: FieldInfo) -> str:
    """What a model's field is called on the wire: what the receiver's copy of the model looks for."""
    alias = field.serialization_alias or field.validation_alias
    return alias if isinstance(alias, str) else name


def clean_text(text: object) -> str:
    """`text` as UTF-8 can hold it (file names may hold half characters), and not without end."""
    cleaned = str(text).encode("utf-8", "backslashreplace").decode()
    if len(cleaned) <= MAX_ERROR_TEXT:
        return cleaned
    return f"{cleaned[:MAX_ERROR_TEXT]}... ({len(cleaned):,} characters)"


def courtesy(details: object) -> dict[str, Any]:
    """Details of an error as a header can hold them. They are a courtesy: what does not travel goes as text, what is too much stays."""
    plain = _plainest(details if isinstance(details, Mapping) else {"details": details}, depth=0)
    packed = pack(plain)
    if len(packed) > MAX_DETAILS_BYTES:
        return {"left_out": f"details of {len(packed):,} bytes"}
    return plain  # type: ignore[no-any-return]


def _plainest(value: object, depth: int) -> Any:
    """Maps with text for keys, lists, text, numbers: nothing that a header's strict reader refuses."""
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return int(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if depth < MAX_DETAILS_DEPTH:
        if isinstance(value, Mapping):
            return {_plainest(str(key), 0): _plainest(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plainest(item, depth + 1) for item in value]
        try:
            return _plainest(to_plain(value), depth + 1)
        except TypeError:
            pass
    return clean_text(value)


def to_plain(value: object) -> object:
    """One step towards what msgpack knows; msgpack calls it again for what is inside."""
    match value:
        case BaseModel():
            fields = type(value).model_fields
            return {_key(name, field): getattr(value, name) for name, field in fields.items()} | (
                value.model_extra or {}
            )
        case Enum():
            return value.value
        case UUID() | Decimal() | PurePath():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case set() | frozenset() | deque() | tuple():
            return list(value)
        case Mapping():
            return dict(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(
        f"a {type(value).__module__}.{type(value).__qualname__} does not travel; send a dict, a dataclass or a pydantic model"
    )
