"""What a node keeps for a subscriber that sleeps, and that it gets all of it once: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError
from agentkit.events import mailbox
from agentkit.events.delivery import Delivery, encode
from agentkit.events.handover import CatchUp, event_of
from agentkit.events.mailbox import Mailbox
from agentkit.events.receiver import Receiver
from agentkit.events.topics import Pattern
from agentkit.wire.values import Packer

PACKER = Packer()


def frame(number: int, *, who: str = "m/P", topic: str = "news.today", life: int = 1, text: str = "") -> bytes:
    return encode(PACKER, topic, who, life, number, 1.0, {"text": text})


def put(box: Mailbox, *frames: bytes) -> None:
    for one in frames:
        event = event_of(one)
        assert event is not None
        box.put(event, one)


def receiver(taken: list[Delivery]) -> Receiver:
    def sink(delivery: Delivery) -> bool:
        taken.append(delivery)
        return True

    return Receiver([(Pattern("news.>"), sink)])


def pages(box: Mailbox) -> tuple[list[bytes], list[tuple[str, str, int, int, int]]]:
    frames: list[bytes] = []
    offset: int | None = 0
    while offset is not None:
        page = box.page(offset)
        frames += page["frames"]
        offset = page["next"]
    return frames, [tuple(one) for one in page["dropped"]]


@given(
    publishers=st.lists(st.sampled_from(["m/A", "m/B", "n/C"]), max_size=40),
    cuts=st.lists(st.integers(0, 40), min_size=4, max_size=4),
    fetched=st.integers(0, 40),
    room=st.integers(0, 12),
)
def test_wherever_the_two_lives_and_the_node_begin_and_end_each_event_is_had_once_in_order_or_counted(
    publishers: list[str], cuts: list[int], fetched: int, room: int
) -> None:
    numbers: dict[str, int] = {}
    frames = []
    for who in publishers:
        numbers[who] = numbers.get(who, 0) + 1
        frames.append(frame(numbers[who], who=who))
    node_from, old_to, new_from, node_to = sorted(cuts)  # whoever takes over begins before the other one ends

    old_had: list[Delivery] = []
    old = receiver(old_had)
    old.gaps.seen((who, "news.today", 1, 0) for who in numbers)
    for one in frames[:old_to]:
        old.take(one)
    box = Mailbox(["news.>"], max_events=room)
    put(box, *frames[node_from:node_to])

    new_had: list[Delivery] = []
    new = receiver(new_had)
    new.gaps.seen(old.gaps.streams())
    before = CatchUp(new)
    fetched = max(fetched, node_to)  # what the node has got has come to the new one, too, when it is handed over
    for one in frames[new_from:fetched]:
        before.take(one)
    before.finish(*pages(box))
    for one in frames[fetched:]:
        before.take(one)

    had = [(one.publisher, one.number) for one in old_had + new_had]
    assert len(set(had)) == len(had)
    for who in numbers:
        own = [number for publisher, number in had if publisher == who]
        assert own == sorted(own)
    assert len(had) + new.lost == len(frames)
    if room >= len(frames):
        assert new.lost == 0


def test_what_is_kept_is_bounded_in_events_and_bytes_and_nothing_overtakes_what_was_dropped() -> None:
    box = Mailbox(["news.>"], max_events=3, max_bytes=100_000)
    put(box, *(frame(number) for number in range(1, 8)))
    assert len(box.frames) == 3
    assert box.page(0)["dropped"] == [["m/P", "news.today", 1, 4, 7]]

    box = Mailbox(["news.>"], max_bytes=2_000)
    put(box, frame(1, text="x" * 1_500), frame(2, text="x" * 1_500), frame(3))
    assert [event.number for event in map(event_of, box.frames) if event is not None] == [1]
    assert box.page(0)["dropped"] == [["m/P", "news.today", 1, 2, 3]]


def test_it_is_remembered_of_so_many_streams_what_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAX_DROPPED", 2)
    box = Mailbox(["news.>"], max_events=0)
    put(box, *(frame(1, who=f"m/P{number}") for number in range(5)))
    assert len(box.page(0)["dropped"]) == 2


def test_what_is_kept_is_handed_over_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "PAGE_BYTES", 100)
    box = Mailbox(["news.>"])
    sent = [frame(number, text="x" * 60) for number in range(1, 6)]
    put(box, *sent)
    assert len(box.page(0)["frames"]) == 2
    assert pages(box)[0] == sent


def test_only_what_a_pattern_means_is_kept() -> None:
    box = Mailbox(["news.*", "sport"])
    assert [box.wants(topic) for topic in ("news.today", "news.a.b", "sport", "sports")] == [True, False, True, False]
    with pytest.raises(ConfigError):
        Mailbox(["news.>.x"])


def test_what_is_dropped_of_a_publisher_that_was_never_heard_is_counted_and_not_twice() -> None:
    taken: list[Delivery] = []
    new = receiver(taken)
    before = CatchUp(new)
    before.finish([], [("m/P", "news.today", 1, 3, 9)])
    assert new.lost == 7
    before.take(frame(10))
    before.take(frame(12))
    assert ([one.number for one in taken], new.lost) == ([10, 12], 8)


@pytest.mark.parametrize(
    "garbage", [b"", b"no topic", b"\xff\xff x", b"news.today \xc1", b"news.today \x93\x01\x02\x03"]
)
def test_what_is_no_event_is_none(garbage: bytes) -> None:
    assert event_of(garbage) is None
