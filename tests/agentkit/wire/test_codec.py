"""AK1 headers: byte-exact vectors both ways, and that garbage is refused by BadFrame and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.names import Incarnation
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from agentkit.wire.codec import BadFrame

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors/ak1.json").read_text())
CLASSES = {
    "HELLO": ak.Hello, "WELCOME": ak.Welcome, "REQUEST": ak.Request, "REPLY": ak.Reply, "ERROR": ak.Error,
    "CANCEL": ak.Cancel, "GOAWAY": ak.GoAway, "BYE": ak.Bye, "PING": ak.Ping, "PONG": ak.Pong, "BATCH": ak.Batch, "CHUNK": ak.Chunk,
    "END": ak.End, "CREDIT": ak.Credit,
}  # fmt: skip


def message_of(vector: dict[str, Any]) -> ak.Message:
    """The value that a vector's fields describe."""
    fields = dict(vector["fields"])
    if "limits" in fields:
        fields |= {"limits": ak.Limits(**fields["limits"]), "capabilities": tuple(fields["capabilities"])}
    if "items" in fields:
        pairs = ((item["header"], item["body"] and bytes.fromhex(item["body"])) for item in fields["items"])
        fields["items"] = [part for pair in pairs for part in pair]
    return CLASSES[vector["kind"]](**fields)  # type: ignore[no-any-return]


def by_name(section: str) -> Any:
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda vector: vector["name"])


@by_name("headers")
def test_a_vector_encodes_to_its_bytes(vector: dict[str, Any]) -> None:
    assert codec.encode(message_of(vector)).hex() == vector["hex"]


@by_name("headers")
def test_a_vector_decodes_to_its_fields(vector: dict[str, Any]) -> None:
    assert codec.decode(bytes.fromhex(vector["hex"])) == message_of(vector)
    assert bytes.fromhex(vector["hex"])[1] == vector["kind_number"] == ak.Kind[vector["kind"]]


@by_name("newer")
def test_what_a_newer_peer_adds_is_ignored(vector: dict[str, Any]) -> None:
    assert codec.decode(bytes.fromhex(vector["hex"])) == message_of(vector)


@by_name("refused")
def test_what_is_no_header_is_refused_and_its_id_is_told_where_there_is_one(vector: dict[str, Any]) -> None:
    with pytest.raises(BadFrame) as caught:
        codec.decode(bytes.fromhex(vector["hex"]))
    assert caught.value.id == vector.get("id")


@by_name("bodies")
def test_a_body_vector_packs_and_unpacks(vector: dict[str, Any]) -> None:
    assert values.pack(vector["value"]).hex() == vector["hex"]
    assert values.unpack(bytes.fromhex(vector["hex"])) == vector["value"]


def test_every_kind_that_is_spoken_has_a_vector() -> None:
    assert {vector["kind"] for vector in VECTORS["headers"]} == {kind.name for kind in ak.Kind}


def test_the_headers_that_are_packed_without_a_value_are_the_same() -> None:
    assert msgpack.packb(codec.request_fields(7, "m", 5, {"a": 1})) == codec.encode(ak.Request(7, "m", 5, 0, {"a": 1}))
    assert msgpack.packb(codec.reply_fields(7)) == codec.encode(ak.Reply(7, {}))


def decodes_or_is_bad(header: bytes) -> None:
    try:
        message = codec.decode(header)
    except BadFrame:
        return
    assert type(message) in CLASSES.values()


@by_name("headers")
def test_every_truncation_decodes_or_is_a_bad_frame(vector: dict[str, Any]) -> None:
    whole = bytes.fromhex(vector["hex"])
    for length in range(len(whole)):
        with pytest.raises(BadFrame):
            codec.decode(whole[:length])


@by_name("headers")
def test_every_mutation_of_one_byte_decodes_or_is_a_bad_frame(vector: dict[str, Any]) -> None:
    whole = bytearray.fromhex(vector["hex"])
    for place, original in enumerate(whole):
        for byte in range(256):
            whole[place] = byte
            decodes_or_is_bad(bytes(whole))
        whole[place] = original


@given(st.binary(max_size=200))
def test_random_bytes_decode_or_are_a_bad_frame(header: bytes) -> None:
    decodes_or_is_bad(header)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars.filter(lambda k: k == k), inner)
)


@given(st.lists(anything, max_size=9), st.integers(-1, 14))
def test_any_array_of_msgpack_decodes_or_is_a_bad_frame(fields: list[Any], kind: int) -> None:
    decodes_or_is_bad(msgpack.packb([kind, *fields]))
    decodes_or_is_bad(msgpack.packb([kind, 1, *fields]))
    decodes_or_is_bad(msgpack.packb(fields))


ids = st.integers(0, 2**63 - 1)
text = st.text(max_size=30)
metas = st.dictionaries(text, st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | text | st.binary())
limits = st.builds(ak.Limits, *[st.integers(1, 2**40)] * 4)
introductions = (
    st.integers(-5, 2**31), text, text, st.integers(0, 2**64 - 1).map(Incarnation), st.lists(text, max_size=3).map(tuple),
    limits,
)  # fmt: skip
messages = st.one_of(
    st.builds(ak.Hello, *introductions),
    st.builds(ak.Welcome, *introductions),
    st.builds(ak.Request, ids, text, st.integers(0, ak.MAX_BUDGET_MS), st.integers(0, 2**32), metas),
    st.builds(ak.Reply, ids, metas),
    st.builds(ak.Error, ids, text, text, st.booleans(), metas),
    st.builds(ak.Chunk, ids, ids),
    st.builds(ak.End, ids),
    st.builds(ak.Credit, ids, ids),
    st.builds(ak.Cancel, ids),
    st.builds(ak.GoAway, text, st.integers(0, 2**63 - 1)),
    st.just(ak.Bye()),
    st.builds(ak.Ping, ids),
    st.builds(ak.Pong, ids),
)


@given(messages)
def test_every_message_comes_back_as_it_was(message: ak.Message) -> None:
    back = codec.decode(codec.encode(message))
    assert back == message
    assert type(back) is type(message)


@given(messages, st.data())
def test_every_truncation_of_any_message_is_a_bad_frame(message: ak.Message, data: st.DataObject) -> None:
    header = codec.encode(message)
    with pytest.raises(BadFrame):
        codec.decode(header[: data.draw(st.integers(0, len(header) - 1))])


def test_nesting_without_end_is_a_bad_frame() -> None:
    with pytest.raises(BadFrame):
        codec.decode(b"\x91" * 100_000)
    with pytest.raises(BadFrame):
        codec.decode(b"\x94\x04\x01" + b"\x91" * 5_000)
