"""Draining sockets on the loop: nothing stalls, one busy socket leaves room for the rest, a bad message ends nothing."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import zmq

from agentkit.resilience.deadline import Deadline
from agentkit.transport import context
from agentkit.transport.channel import Channel
from agentkit.transport.monitor import Monitor
from agentkit.transport.reader import DRAIN_LIMIT, Reader
from agentkit.wire import values
from tests.agentkit.support import an_inbox, echoes, eventually, identity


@pytest.mark.slow
async def test_nothing_stalls_with_64_calls_in_flight_over_thousands_of_calls() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        channel = Channel("echo", endpoint, identity("caller"))

        async def calls(count: int) -> None:
            for n in range(count):
                _, future = channel.request("echo", values.pack({"n": n}), Deadline.after(60).at_s, {})
                assert await future == {"n": n}

        await asyncio.gather(*(calls(125) for _ in range(64)))
        assert inbox.safety_check() == 0, "something lay there unseen"
        channel.close()


async def test_one_call_at_a_time_does_not_stall_either() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        channel = Channel("echo", endpoint, identity("caller"))
        for n in range(1000):
            _, future = channel.request("echo", values.pack({"n": n}), Deadline.after(10).at_s, {})
            assert await future == {"n": n}
        channel.close()


@pytest.fixture
def pair() -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    left, right = (context.socket(zmq.PAIR, max_frame_bytes=-1) for _ in range(2))
    left.sndhwm = right.rcvhwm = 0
    right.bind("inproc://test-reader")
    left.connect("inproc://test-reader")
    yield left, right  # type: ignore[misc]
    left.close()
    right.close()


async def test_a_drain_is_bounded_and_goes_on_by_itself(pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    left, right = pair
    for n in range(1000):
        left.send(b"%d" % n)
    got: list[bytes] = []
    turns: list[int] = []
    reader = Reader(right, lambda frames: got.append(frames[0]))

    def turn() -> None:
        turns.append(len(got))
        if len(got) < 1000:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    await eventually(lambda: len(got) == 1000)
    reader.close()
    assert got == [b"%d" % n for n in range(1000)]
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 2 * DRAIN_LIMIT


async def test_timers_run_while_a_socket_is_flooded(pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    left, right = pair
    for _ in range(100_000):
        left.send(b"x")
    count = 0
    ticks: list[int] = []

    def take(_: list[bytes]) -> None:
        nonlocal count
        count += 1

    reader = Reader(right, take)
    while count < 100_000:
        await asyncio.sleep(0.001)
        ticks.append(count)
    reader.close()
    assert len(ticks) > 5, "the flood was taken in one go"


async def test_a_message_that_trips_its_reader_up_does_not_hide_those_behind_it(
    pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]],
) -> None:
    left, right = pair
    got: list[bytes] = []

    def picky(frames: list[bytes]) -> None:
        if frames[0] == b"bad":
            raise RuntimeError("tripped")
        got.append(frames[0])

    reader = Reader(right, picky)
    for word in (b"a", b"bad", b"b", b"bad", b"c"):
        left.send(word)
    await eventually(lambda: got == [b"a", b"b", b"c"])
    reader.close()


async def test_a_reader_that_is_closed_in_the_middle_takes_no_more(
    pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]],
) -> None:
    left, right = pair
    got: list[bytes] = []

    def once(frames: list[bytes]) -> None:
        got.append(frames[0])
        reader.close()

    for word in (b"a", b"b"):
        left.send(word)
    reader = Reader(right, once)
    await eventually(lambda: got == [b"a"])
    reader.poke()
    await asyncio.sleep(0.01)
    assert got == [b"a"]
    assert right.recv(zmq.NOBLOCK) == b"b"


async def test_every_operation_may_eat_the_edge_and_a_poke_finds_what_it_hid(
    pair: tuple[zmq.Socket[bytes], zmq.Socket[bytes]],
) -> None:
    left, right = pair
    got: list[bytes] = []
    reader = Reader(right, lambda frames: got.append(frames[0]))
    await asyncio.sleep(0.01)
    for n in range(200):
        left.send(b"%d" % n)
        _ = right.getsockopt(zmq.EVENTS)  # the edge is gone now
        reader.poke()
        await eventually(lambda n=n: len(got) == n + 1)  # type: ignore[misc]
    reader.close()


async def test_a_monitor_tells_of_connections_and_their_end() -> None:
    heard: list[int] = []
    server = context.socket(zmq.ROUTER, max_frame_bytes=-1)
    monitor = Monitor(server, int(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED), lambda event, _: heard.append(event))
    port = server.bind_to_random_port("tcp://127.0.0.1")
    for round_ in range(1, 20):
        client = context.socket(zmq.DEALER, max_frame_bytes=-1)
        client.connect(f"tcp://127.0.0.1:{port}")
        await eventually(lambda n=round_: heard.count(int(zmq.EVENT_ACCEPTED)) == n)  # type: ignore[misc]
        client.close(linger=0)
        await eventually(lambda n=round_: heard.count(int(zmq.EVENT_DISCONNECTED)) == n)  # type: ignore[misc]
    monitor.close()
    server.close()
