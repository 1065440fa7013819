"""The two ends of a stream: what is allowed to be under way, in which order, and how it ends."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import PeerLost
from agentkit.transport.streams import OVERHEAD_BYTES, Incoming, Received, StreamBroken, Window, size_of

CREDIT = 1000


def value(size: int = 0) -> Received:
    return Received(bytes(size), ())


async def test_values_are_read_in_order_and_then_the_end() -> None:
    incoming = Incoming(CREDIT, lambda _: None)
    for seq in range(3):
        incoming.put(seq, value(seq))
    incoming.end()
    assert [await incoming.take() for _ in range(4)] == [value(0), value(1), value(2), None]
    assert await incoming.take() is None


async def test_a_reader_waits_for_what_comes_later() -> None:
    incoming = Incoming(CREDIT, lambda _: None)
    reading = asyncio.create_task(incoming.take())
    await asyncio.sleep(0)
    incoming.put(0, value(5))
    assert await reading == value(5)


async def test_what_came_before_an_error_is_read_first() -> None:
    incoming = Incoming(CREDIT, lambda _: None)
    incoming.put(0, value())
    incoming.end(PeerLost("gone"))
    incoming.put(1, value())  # comes too late for anybody
    assert await incoming.take() == value()
    with pytest.raises(PeerLost):
        await incoming.take()


@pytest.mark.parametrize("seq", [0, 2, 2**40])
async def test_a_gap_or_a_repetition_breaks_the_stream(seq: int) -> None:
    incoming = Incoming(CREDIT, lambda _: None)
    incoming.put(0, value())
    with pytest.raises(StreamBroken):
        incoming.put(seq, value())


async def test_nobody_may_send_without_credit() -> None:
    incoming = Incoming(CREDIT, lambda _: None)
    incoming.put(0, value(CREDIT))  # the last byte of credit is enough for a value of any size
    with pytest.raises(StreamBroken, match="credit"):
        incoming.put(1, value())


async def test_a_writer_without_credit_waits_until_it_is_granted() -> None:
    window = Window(CREDIT)
    await window.room()
    assert window.spend(CREDIT) == 0
    waiting = asyncio.create_task(window.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    window.grant(1)
    await waiting
    assert window.spend(1) == 1


async def test_a_writer_hears_why_nobody_reads_any_more() -> None:
    window = Window(0)
    waiting = asyncio.create_task(window.room())
    await asyncio.sleep(0)
    window.end(PeerLost("gone"))
    with pytest.raises(PeerLost):
        await waiting
    with pytest.raises(PeerLost):
        await window.room()


@given(st.lists(st.integers(0, 2 * CREDIT), max_size=60))
def test_any_sizes_pass_and_no_more_than_the_credit_and_one_value_is_ever_unread(sizes: list[int]) -> None:
    async def main() -> None:
        window = Window(CREDIT)
        incoming = Incoming(CREDIT, window.grant)
        most = 0

        async def write() -> None:
            nonlocal most
            for size in sizes:
                await window.room()
                incoming.put(window.spend(size_of(bytes(size))), value(size))
                most = max(most, incoming._unread + incoming._used)
            incoming.end()

        writing = asyncio.create_task(write())
        read = []
        while (received := await incoming.take()) is not None:
            read.append(len(received.body))
        await writing
        assert read == sizes
        assert most < CREDIT + max(sizes, default=0) + OVERHEAD_BYTES

    asyncio.run(main())


async def test_credit_comes_in_few_messages() -> None:
    grants: list[int] = []
    incoming = Incoming(CREDIT, grants.append)
    per_value = size_of(b"")
    for seq in range(CREDIT // per_value):
        incoming.put(seq, value())
        await incoming.take()
    assert len(grants) == 1
    assert grants[0] >= CREDIT / 2
