from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.events.delivery import Delivery, decode, encode, topic_in
from agentkit.events.receiver import Receiver
from agentkit.events.topics import Pattern
from agentkit.wire import values

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def frame(
    topic: str = "task.made", number: int = 1, payload: object = None, publisher: str = "m/P", life: int = 1
) -> bytes:
    return encode(values.Packer(), topic, publisher, life, number, 1.5, payload)


@given(st.sampled_from(["a", "task.made", "x-1.y_2.z"]), st.integers(1, 2**63 - 1), PLAIN)
def test_what_was_packed_is_read_again(topic: str, number: int, payload: object) -> None:
    packed = frame(topic, number, payload)
    assert topic_in(packed) == topic.encode()
    assert decode(topic, packed) == Delivery(topic, payload, "m/P", 1, number, 1.5)


class Heard:
    """A receiver, and what it hands on."""

    def __init__(self, *patterns: str, room: int = 1000) -> None:
        self.deliveries: list[Delivery] = []
        self.room = room
        self.receiver = Receiver([(Pattern(text), self.take) for text in patterns])

    def take(self, delivery: Delivery) -> bool:
        if len(self.deliveries) >= self.room:
            return False
        self.deliveries.append(delivery)
        return True


@given(st.lists(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b"task.made " + tail), max_size=30))
def test_garbage_is_counted_and_nothing_else_comes_of_it(frames: list[bytes]) -> None:
    heard = Heard("task.*")
    for one in frames:
        heard.receiver.take(one)
    assert heard.deliveries == []
    heard.receiver.take(frame())
    assert [one.topic for one in heard.deliveries] == ["task.made"]


@pytest.mark.parametrize(
    "fields",
    [
        (2, "m/P", 1, 1, 1.5, None),  # another version
        (1, "m/P", 1, 0, 1.5, None),  # numbers begin with 1
        (1, "m/P", 1, True, 1.5, None),
        (1, "m/P", 1, 1, 1, None),
        (1, b"m/P", 1, 1, 1.5, None),
        (1, "m/P", 1, 1, 1.5),
        {"a": 1},
    ],
)
def test_fields_of_other_types_are_garbage(fields: object) -> None:
    heard = Heard(">")
    heard.receiver.take(b"task.made " + values.pack(fields))
    assert (heard.deliveries, heard.receiver.bad_frames, heard.receiver.received) == ([], 1, 0)


def test_a_topic_that_the_prefix_brings_but_no_pattern_means_is_neither_received_nor_garbage() -> None:
    heard = Heard("task.*.made")
    heard.receiver.take(frame("task.a.gone"))
    assert (heard.receiver.received, heard.receiver.bad_frames, heard.deliveries) == (0, 0, [])
    assert heard.receiver.prefixes == [b"task."]


def test_an_event_that_two_patterns_mean_reaches_both_and_counts_once() -> None:
    heard = Heard("task.*", "*.made")
    heard.receiver.take(frame())
    assert (len(heard.deliveries), heard.receiver.received) == (2, 1)


def test_gaps_are_counted_and_told_with_the_event_behind_them() -> None:
    heard = Heard("task.*")
    for number in (3, 4, 8):
        heard.receiver.take(frame(number=number))
    assert [one.lost for one in heard.deliveries] == [0, 0, 3]
    assert heard.receiver.lost == 3


def test_what_finds_no_room_is_lost() -> None:
    heard = Heard("task.*", room=2)
    for number in range(1, 6):
        heard.receiver.take(frame(number=number))
    assert (heard.receiver.received, heard.receiver.lost) == (5, 3)


def test_topics_without_end_cost_bounded_memory() -> None:
    heard = Heard("task.>", room=0)
    for n in range(25_000):
        heard.receiver.take(frame(f"task.x{n}"))
    assert len(heard.receiver._known) <= 10_000
    assert len(heard.receiver.gaps._last) <= 10_000
