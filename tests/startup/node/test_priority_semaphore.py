"""The line before the zygote."""

from __future__ import annotations

import asyncio

import pytest

from startup.node.priority_semaphore import PrioritySemaphore


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_most_urgent_goes_first_and_equals_take_turns() -> None:
    line, order = PrioritySemaphore(1), []
    door = asyncio.Event()

    async def enter(name: str, urgency: int) -> None:
        async with line.turn(urgency):
            order.append(name)
            await door.wait()

    tasks = [asyncio.create_task(enter(name, urgency)) for name, urgency in (("in", 0), ("a", 1), ("b", 5), ("c", 1))]
    await _settle()
    assert order == ["in"]
    door.set()
    await asyncio.gather(*tasks)
    assert order == ["in", "b", "a", "c"]


@pytest.mark.parametrize("given_up_when", ["waiting", "just let in"])
async def test_whoever_gives_up_leaves_the_place_to_the_next(given_up_when: str) -> None:
    line = PrioritySemaphore(1)
    door = asyncio.Event()

    async def enter() -> None:
        async with line.turn(0):
            await door.wait()

    first = asyncio.create_task(enter())
    await _settle()
    quitter = asyncio.create_task(enter())
    await _settle()
    if given_up_when == "waiting":
        quitter.cancel()
        await _settle()
        door.set()
    else:
        door.set()
        while not first.done():
            await asyncio.sleep(0)
        quitter.cancel()
    await asyncio.wait([first, quitter])
    async with asyncio.timeout(5), line.turn(0):
        pass
