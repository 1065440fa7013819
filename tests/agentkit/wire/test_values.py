"""Bodies: what travels, what does not, and that errors always travel."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import types
import uuid
from collections import deque
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from agentkit.wire.values import Undecodable, Unsendable


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: Colour | None = None


class Box(BaseModel):
    name: str
    points: list[Point] = []


class Pair(NamedTuple):
    left: int
    right: str


NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 250_000, tzinfo=dt.timezone(dt.timedelta(hours=2)))


@pytest.mark.parametrize(
    ("value", "arrives_as"),
    [
        (NOON, NOON.astimezone(dt.UTC)),
        (dt.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.time(3, 4), "03:04:00"),
        (dt.timedelta(minutes=1.5), 90.0),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Decimal("1.10"), "1.10"),
        (PurePosixPath("/a/b"), "/a/b"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Point(1, Colour.RED), {"x": 1, "y": "red"}),
        (Box(name="b", points=[Point(2)]), {"name": "b", "points": [{"x": 2, "y": None}]}),
        (Pair(1, "r"), [1, "r"]),
        ((1, 2), [1, 2]),
        ({7}, [7]),
        (frozenset({7}), [7]),
        (deque([1, 2]), [1, 2]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        ({1: "int key"}, {1: "int key"}),
    ],
)
def test_a_value_arrives_as_the_table_says(value: Any, arrives_as: Any) -> None:
    assert values.unpack(values.pack(value)) == arrives_as
    assert values.unpack(values.pack({"deep": [value]})) == {"deep": [arrives_as]}


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@given(plain)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    assert values.unpack(values.pack(value)) == value


@given(plain, st.data())
def test_a_truncated_body_is_undecodable(value: Any, data: st.DataObject) -> None:
    body = values.pack(value)
    with pytest.raises(Undecodable):
        values.unpack(body[: data.draw(st.integers(0, len(body) - 1))])


@given(st.binary(max_size=300))
def test_random_bytes_unpack_or_are_undecodable(body: bytes) -> None:
    with contextlib.suppress(Undecodable):
        values.unpack(body)


@pytest.mark.parametrize(
    "body",
    [
        msgpack.packb({"ok": 1}) + b"\x00",
        b"\x81\x91\x01\x02",  # a map whose key is an array
        b"\xc7\x03\xff\x01\x02\x03",  # a timestamp of three bytes
        b"\xd7\xff" + b"\xff" * 8,  # a timestamp beyond any calendar
        b"\xc1",  # never used in msgpack
        b"\xdf\xff\xff\xff\xff",  # four billion entries
        b"\x91" * 100_000,
        b"\xa1\xff",  # no UTF-8
    ],
)
def test_hostile_bodies_are_undecodable(body: bytes) -> None:
    with pytest.raises(Undecodable):
        values.unpack(body)


class Strange:
    pass


class Broken(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    thing: Any = None


@dataclasses.dataclass
class Half:
    there: int
    missing: int = dataclasses.field(init=False)


@pytest.mark.parametrize("value", [Strange(), 2**64, -(2**63) - 1, "\ud800", Broken(thing=Strange()), Half(1), len])
def test_what_does_not_travel_is_named_and_leaves_the_packer_clean(value: Any) -> None:
    packer = values.Packer()
    with pytest.raises(Unsendable):
        packer.pack({"long": "x" * 100, "wrong": [1, 2, value]})
    assert packer.pack(1) == b"\x01"


def test_a_list_that_holds_itself_does_not_travel() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(Unsendable):
        values.pack(endless)


def test_the_sentence_about_what_does_not_travel_says_what_to_send_instead() -> None:
    with pytest.raises(Unsendable, match=r"test_values\.Strange does not travel; send a dict"):
        values.pack({"a": Strange()})


def test_a_packer_gives_a_large_buffer_back() -> None:
    packer = values.Packer()
    first = packer._packer
    packer.pack(b"x" * 10)
    assert packer._packer is first
    packer.pack(b"x" * (values.MAX_KEPT_BYTES + 1))
    assert packer._packer is not first


# -- errors must travel -----------------------------------------------------------------------------------------------

dirty = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary()
    | st.text(st.characters(codec=None)) | st.just(NOON) | st.just(Strange()) | st.just(Point(1)) | st.uuids(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers() | st.text(), inner, max_size=4)
    | st.tuples(inner),
)  # fmt: skip


@given(dirty, st.text(st.characters(codec=None)))
def test_whatever_an_author_puts_into_an_error_crosses_in_a_header(details: Any, text: str) -> None:
    error = ak.Error(1, "handler_error", values.clean_text(text), False, values.courtesy(details))
    assert codec.decode(codec.encode(error)) == error


def test_details_keep_what_travels() -> None:
    details = {"id": 7, "names": ("a", "b"), 3: {"when": NOON, "point": Point(1), "odd": Strange()}}
    told = values.courtesy(details)
    assert told["id"] == 7
    assert told["names"] == ["a", "b"]
    assert told["3"]["when"] == NOON.isoformat()
    assert told["3"]["point"] == {"x": 1, "y": None}
    assert "Strange" in told["3"]["odd"]


def test_details_and_texts_without_end_are_cut() -> None:
    assert values.courtesy({"x": "y" * 1_000_000}) == {"left_out": "details of 1,000,008 bytes"}
    assert values.clean_text("z" * 1_000_000).endswith("... (1,000,000 characters)")
    assert len(values.clean_text("z" * 1_000_000)) < values.MAX_ERROR_TEXT + 40
    endless: list[Any] = []
    endless.append(endless)
    assert len(str(values.courtesy({"endless": endless}))) < 1000
