from __future__ import annotations

import asyncio

from agentkit import Event
from agentkit.events.delivery import decode
from agentkit.events.publisher import Publisher


class Made(Event, topic="test-publisher.made"):
    n: int


class Room:
    """Takes so many frames, then none until there is room again."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tries = 0
        self.taken: list[bytes] = []

    def post(self, frame: bytes) -> bool:
        self.tries += 1
        if self.room <= 0:
            return False
        self.room -= 1
        self.taken.append(frame)
        return True

    def numbers(self) -> list[tuple[int, int]]:
        found = [decode("test-publisher.made", frame) for frame in self.taken]
        return [(one.number, one.data["n"]) for one in found]


async def test_who_is_faster_than_the_relay_waits_and_nothing_overtakes() -> None:
    room = Room(2)
    publisher = Publisher("m/P", 1, room.post)
    sent = [asyncio.create_task(publisher.publish("test-publisher.made", {"n": n})) for n in range(5)]
    asyncio.get_running_loop().call_later(0.01, setattr, room, "room", 10)
    await asyncio.gather(*sent)
    assert room.numbers() == [(n + 1, n) for n in range(5)]
    assert (publisher.published, publisher.dropped) == (5, 0)


async def test_while_the_relay_is_away_events_are_dropped_at_once_and_have_their_numbers() -> None:
    room = Room(1)
    publisher = Publisher("m/P", 1, room.post)
    for n in range(2):
        await publisher.publish("test-publisher.made", {"n": n})
    before = room.tries
    for n in range(2, 12):
        await publisher.publish("test-publisher.made", {"n": n})
    assert room.tries <= before + 20  # none of them waited
    room.room = 5
    for n in range(12, 14):
        await publisher.publish("test-publisher.made", {"n": n})
    assert room.numbers() == [(1, 0), (13, 12), (14, 13)]
    assert (publisher.published, publisher.dropped) == (14, 11)


async def test_who_gives_up_waiting_leaves_a_gap_that_is_counted() -> None:
    room = Room(0)
    publisher = Publisher("m/P", 1, room.post)
    task = asyncio.create_task(publisher.publish("test-publisher.made", {"n": 0}))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    room.room = 1
    await publisher.publish("test-publisher.made", {"n": 1})
    assert room.numbers() == [(2, 1)]
    assert publisher.dropped == 1
