"""Values with large buffers, as body and attachments and back."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from agentkit.wire import attachments, values
from agentkit.wire.attachments import (
    ATTACH_FROM_BYTES,
    EXTENSION,
    FRAME_BYTES,
    MAX_FRAMES,
    Content,
    ContentPacker,
    too_large,
    unpack,
)
from agentkit.wire.envelope import Limits
from agentkit.wire.values import Undecodable, Unsendable

LARGE = ATTACH_FROM_BYTES


def pack(value: object) -> Content:
    return ContentPacker().pack(value)


def there_and_back(value: object) -> Any:
    content = pack(value)
    return unpack(content[0], content[1])


def same(left: Any, right: Any) -> bool:
    """Equal, types and all; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


dtypes = st.one_of(
    st_np.boolean_dtypes(), st_np.integer_dtypes(), st_np.unsigned_integer_dtypes(), st_np.floating_dtypes(sizes=(16, 32, 64)),
    st_np.complex_number_dtypes(sizes=(64, 128)), st_np.datetime64_dtypes(), st_np.timedelta64_dtypes(),
    st_np.byte_string_dtypes(min_len=1), st_np.unicode_string_dtypes(min_len=1),
)  # fmt: skip
arrays = st_np.arrays(dtypes, st_np.array_shapes(min_dims=0, min_side=0, max_side=6))
buffers = st.builds(
    lambda size, fill: bytes([fill]) * size, st.sampled_from([0, 1, LARGE - 1, LARGE, 3 * LARGE]), st.integers(0, 255)
)
leaves = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=20)
)
plain = st.recursive(
    leaves | buffers | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
@settings(deadline=None)
def test_what_is_sent_arrives(value: Any) -> None:
    assert same(there_and_back(value), value)


@given(plain)
@settings(deadline=None)
def test_only_what_is_large_is_attached_and_the_body_holds_none_of_it(value: Any) -> None:
    content = pack(value)
    assert all(LARGE <= len(buffer) <= FRAME_BYTES for buffer in content[1])
    assert len(content[1]) <= MAX_FRAMES


@given(st.binary(max_size=80), st.lists(st.binary(max_size=10), max_size=3))
def test_random_placeholders_are_read_or_refused(data: bytes, attached: list[bytes]) -> None:
    with contextlib.suppress(Undecodable):
        unpack(msgpack.packb(msgpack.ExtType(EXTENSION, data)), attached)


@given(
    st.tuples(
        st.integers(-1, 3) | st.binary(max_size=24), st.integers(-1, 3), st.integers(-1, 3),
        st.sampled_from(["|u1", "<f8", "<U2", "|O", "<V8", "f8", "|S0", "<M8[ns]", "<f16", 3]),
        st.lists(st.integers(-1, 4), max_size=3) | st.none(), st.sampled_from(["C", "F", "K", None]),
    ),
    st.integers(3, 6),
)  # fmt: skip
def test_hostile_placeholders_are_read_or_refused(fields: tuple[Any, ...], how_many: int) -> None:
    body = msgpack.packb(msgpack.ExtType(EXTENSION, msgpack.packb(fields[:how_many])))
    with contextlib.suppress(Undecodable):
        unpack(body, [bytes(8), bytes(16), bytes(24)])


@pytest.mark.parametrize(
    "fields",
    [
        (0, 1, 2, "|O", [1], "C"), (0, 1, 2, "|V8", [1], "C"), (0, 1, 2, "O", [1], "C"), (0, 1, 2, "<f8", [2], "C"),
        (0, 1, 2, "<f8", [2**40, 2**40], "C"), (0, 1, 2, "<f8", [-1], "C"), (0, 1, 2, "<f8", [1], "A"), (0, 1, 2, "<f8", [1.0], "C"),
        (1, 1, 0), (0, 2, 0), (-1, 1, 0), (0, 0, 0), (0, 1, 9), (0, 1), (0, 1, 0, "<f8"), (None, 0, 0), (0, 1, 1, "<f8", [2]),
        (b"", 0, 2, "|u1", [0] * 65, "C"), (0, 1, 1, "<c16", [0]), (True, 1, 0),
    ],
)  # fmt: skip
def test_a_placeholder_that_lies_is_refused(fields: tuple[Any, ...]) -> None:
    body = msgpack.packb({"x": msgpack.ExtType(EXTENSION, msgpack.packb(fields))})
    with pytest.raises(Undecodable):
        unpack(body, [bytes(8)])


def test_buffers_are_views_of_the_senders_memory() -> None:
    array, data = np.arange(LARGE, dtype=np.int64), bytes(LARGE)
    content = pack({"array": array, "data": data, "part": memoryview(data)})
    assert len(content[0]) < 200
    assert sorted(map(len, content[1])) == [LARGE, LARGE, 8 * LARGE]
    assert {memoryview(buffer).obj is data for buffer in content[1]} == {True, False}
    array[5] = -1
    (view,) = (b for b in content[1] if len(b) == 8 * LARGE)
    assert np.frombuffer(view, np.int64)[5] == -1


def test_what_arrives_is_a_view_of_its_frame() -> None:
    frame = bytearray(8 * LARGE)
    content = pack([np.zeros(LARGE)])
    (array,) = unpack(content[0], [memoryview(frame)])
    frame[:8] = np.float64(2.5).tobytes()
    assert array[0] == 2.5
    array[1] = 1.0
    assert bytes(frame[8:16]) == np.float64(1.0).tobytes()


def test_small_arrays_can_be_written_to_like_large_ones() -> None:
    small, large = there_and_back([np.zeros(2), np.zeros(LARGE)])
    small[0] = 1
    assert small.flags.writeable
    assert small.flags.aligned
    assert not large.flags.owndata


@pytest.mark.parametrize("size", [4, 2 * LARGE])
def test_slices_and_orders_arrive_as_they_are(size: int) -> None:
    square = np.arange(size * 3, dtype=np.int32).reshape(size, 3)
    for array in (
        square[::2],
        square.T,
        square[:, 1],
        np.asfortranarray(square),
        square[::-1],
        square[0, 0],
        np.array(5),
    ):
        arrived = there_and_back({"x": array})["x"]
        assert np.array_equal(arrived, array)
        assert np.shape(arrived) == np.shape(array)


def test_fortrans_order_costs_no_copy() -> None:
    array = np.asfortranarray(np.zeros((LARGE, 2)))
    (view,) = pack(array)[1]
    array[3, 0] = 7
    assert np.frombuffer(view)[3] == 7


@pytest.mark.parametrize(
    "array",
    [np.array([object()]), np.zeros(2, dtype=[("a", "i4")]), np.ma.array([1, 2], mask=[0, 1]), np.zeros(2, dtype=np.longdouble)],
)  # fmt: skip
def test_arrays_of_objects_records_and_masks_are_refused(array: Any) -> None:
    with pytest.raises(Unsendable, match="does not travel"):
        pack({"x": array})


def test_numbers_of_numpy_are_numbers() -> None:
    sent = {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "s": np.str_("x")}
    assert there_and_back(sent) == {"i": 3, "f": 0.5, "b": True, "s": "x"}


def test_where_nothing_can_be_attached_arrays_are_lists() -> None:
    assert values.unpack(values.pack({"x": np.arange(3), "n": np.int16(4)})) == {"x": [0, 1, 2], "n": 4}


def test_memoryviews_keep_format_and_shape() -> None:
    import array as arrays_of_python

    for size in (6, 6 * LARGE):
        view = memoryview(arrays_of_python.array("d", range(size))).cast("B").cast("d", [size // 3, 3])
        arrived = there_and_back(view)
        assert (arrived.format, arrived.shape, arrived.tobytes()) == ("d", view.shape, view.tobytes())
    assert there_and_back(memoryview(b"abcdef")[::2]).tobytes() == b"ace"
    assert there_and_back(memoryview(b"")).nbytes == 0
    with pytest.raises(Unsendable, match="format"):
        pack(memoryview(np.zeros(3, dtype=[("a", "i4"), ("b", "f8")])))


def test_bytes_arrive_as_bytes_however_large() -> None:
    for size in (1, LARGE, 5 * LARGE):
        for sent in (bytes(size), bytearray(size)):
            assert type(there_and_back({"x": [sent]})["x"][0]) is bytes


@dataclasses.dataclass
class Frame:
    number: int
    pixels: Any


def test_what_stands_in_models_is_attached_too() -> None:
    content = pack([Frame(1, np.zeros((64, 64, 4))), {"again": Frame(2, bytes(LARGE))}])
    assert len(content[1]) == 2
    first, second = unpack(content[0], content[1])
    assert first["pixels"].shape == (64, 64, 4)
    assert second["again"] == {"number": 2, "pixels": bytes(LARGE)}


def test_more_buffers_than_frames_are_allowed_stay_in_the_body() -> None:
    sent = [bytes(LARGE)] * (MAX_FRAMES + 3)
    content = pack(sent)
    assert len(content[1]) == MAX_FRAMES
    assert unpack(content[0], content[1]) == sent


def test_a_buffer_that_is_larger_than_a_frame_travels_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "FRAME_BYTES", 3 * LARGE)
    array = np.arange(8 * LARGE, dtype=np.uint8)
    sent = [bytes(LARGE), array, memoryview(array), b"x" * (3 * LARGE + 1)]
    content = pack(sent)
    assert sorted(len(b) // LARGE for b in content[1]) == [0, 1, 2, 2, 3, 3, 3, 3, 3]
    arrived = unpack(content[0], content[1])
    assert (arrived[0], arrived[2].tobytes(), arrived[3]) == (sent[0], array.tobytes(), sent[3])
    assert np.array_equal(arrived[1], array)


def test_what_the_receiver_would_not_take_is_too_large() -> None:
    content = pack([bytes(LARGE), bytes(2 * LARGE)])
    assert too_large("it", content, Limits()) is None
    for limits, says in (
        (Limits(frame_bytes=LARGE), f"it is {2 * LARGE:,} bytes"),
        (Limits(attachments=1), "2 attachments"),
    ):
        refusal = too_large("it", content, limits)
        assert refusal is not None
        assert says in refusal.message


def test_a_value_that_holds_itself_is_refused() -> None:
    circle: list[Any] = []
    circle += [circle, circle]
    with pytest.raises(Unsendable):
        pack(circle)


def test_a_packer_works_on_after_a_value_that_does_not_travel() -> None:
    packer = ContentPacker()
    with pytest.raises(Unsendable):
        packer.pack([bytes(LARGE), object()])
    assert packer.pack([1]) == (values.pack([1]), ())


def test_a_content_is_not_changed_by_the_next_one() -> None:
    packer = ContentPacker()
    first = packer.pack(bytes(LARGE))
    packer.pack(b"y" * LARGE)
    assert unpack(first[0], first[1]) == bytes(LARGE)


def test_numpy_is_not_imported_and_arrays_arrive_as_memoryviews_without_it() -> None:
    body, _ = pack({"x": np.arange(6, dtype=np.int32).reshape(2, 3)})
    text, _ = pack(np.array(["a"]))
    script = f"""
import sys
from agentkit.wire.attachments import ContentPacker, unpack
from agentkit.wire.envelope import Limits
from agentkit.wire.values import Undecodable
packer = ContentPacker()
view = unpack({body!r})["x"]
assert (view.format, view.shape, view.tolist()) == ("i", (2, 3), [[0, 1, 2], [3, 4, 5]]), view
again = unpack(*packer.pack(view))
assert again == view
try:
    unpack({text!r})
except Undecodable as exc:
    assert "numpy" in str(exc)
else:
    raise SystemExit("text arrays need numpy")
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
