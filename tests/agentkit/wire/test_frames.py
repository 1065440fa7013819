"""The control conversation's frames: a stream is cut into messages wherever it was cut into reads."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import BadRequest, TooLarge
from agentkit.wire import frames

messages = st.lists(
    st.tuples(st.integers(0, 2**32), st.text(max_size=10), st.dictionaries(st.text(), st.integers(0, 9))).map(list),
    max_size=6,
)


@given(messages, st.lists(st.integers(0, 300), max_size=8))
def test_messages_come_out_whole_however_the_stream_was_cut(sent: list[Any], cuts: list[int]) -> None:
    stream = b"".join(map(frames.pack, sent))
    places = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    buffer = frames.FrameBuffer()
    got = [m for start, end in itertools.pairwise(places) for m in buffer.feed(stream[start:end])]
    assert got == sent


def test_a_length_that_nobody_would_send_ends_the_conversation() -> None:
    with pytest.raises(TooLarge):
        list(frames.FrameBuffer().feed(b"\xff\xff\xff\xff"))


def test_a_message_that_nobody_would_take_is_not_sent() -> None:
    with pytest.raises(TooLarge):
        frames.pack(b"x" * (frames.MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("body", [b"\xc1", b"\x81\x91\x01\x02", b"\x92\x01", b"\x01\x02", b"\x91" * 5000])
def test_a_frame_that_is_no_msgpack_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        list(frames.FrameBuffer().feed(len(body).to_bytes(4, "big") + body))
