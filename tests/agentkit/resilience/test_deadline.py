"""Deadlines: one point in time, entered once; and many of them for the price of one timer."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentkit.clock import now_s
from agentkit.errors import ConfigError, DeadlineExceeded
from agentkit.resilience.deadline import Deadline, DeadlineQueue
from agentkit.wire.envelope import MAX_BUDGET_MS
from tests.agentkit.support import eventually


def test_a_deadline_is_the_time_that_is_left() -> None:
    deadline = Deadline.after(10)
    assert 1 < deadline.left_s() <= 10
    assert 1000 < deadline.left_ms() <= 10_000
    assert not deadline.has_passed()
    assert Deadline.after(0).has_passed()
    assert Deadline(now_s() - 5).left_s() == 0
    assert Deadline(now_s() - 5).left_ms() == 0


@pytest.mark.parametrize("wrong", [-1, float("nan"), None, "5", [1]])
def test_a_timeout_that_is_no_time_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="timeout: got"):
        Deadline.after(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("long", [float("inf"), 1e12])
def test_nobody_waits_longer_than_a_budget_can_say(long: float) -> None:
    assert Deadline.after(long).left_ms() <= MAX_BUDGET_MS


async def test_a_scope_ends_its_block_when_time_is_up() -> None:
    with pytest.raises(DeadlineExceeded, match="waiting: time is up") as caught:
        async with Deadline.after(0.01).scope("waiting"):
            await asyncio.sleep(10)
    assert isinstance(caught.value, TimeoutError)


async def test_a_scope_lets_through_what_its_block_raises() -> None:
    with pytest.raises(DeadlineExceeded, match="inner"):
        async with Deadline.after(5).scope("outer"):
            raise DeadlineExceeded("inner")
    async with Deadline.after(5).scope("outer"):
        await asyncio.sleep(0)


async def test_keys_are_called_when_their_time_has_come_and_not_before() -> None:
    passed: dict[int, float] = {}
    queue = DeadlineQueue(asyncio.get_running_loop(), lambda key: passed.setdefault(key, now_s()))
    due = {key: now_s() + key * 0.013 for key in range(20)}
    for key in reversed(due):  # type: ignore[call-overload]
        queue.add(key, due[key])
    await eventually(lambda: len(passed) == 20)
    for key, at_s in due.items():
        assert at_s - 0.003 <= passed[key]
    assert queue._timer is None
    queue.close()


async def test_a_key_that_was_removed_is_not_called() -> None:
    passed: list[int] = []
    queue = DeadlineQueue(asyncio.get_running_loop(), passed.append)
    for key in range(4):
        queue.add(key, now_s() + 0.02)
    queue.remove(1)
    queue.remove(1)
    queue.remove(99)
    await eventually(lambda: len(passed) == 3)
    assert passed == [0, 2, 3]
    queue.close()


async def test_an_earlier_deadline_overtakes_one_that_is_watched_already() -> None:
    passed: list[str] = []
    queue = DeadlineQueue(asyncio.get_running_loop(), lambda key: passed.append("early" if key == 2 else "late"))
    queue.add(1, now_s() + 30)
    queue.add(2, now_s() + 0.01)
    await eventually(lambda: passed == ["early"])
    queue.close()


async def test_a_key_may_add_and_remove_others_while_it_is_called() -> None:
    passed: list[int] = []

    def on_passed(key: int) -> None:
        passed.append(key)
        if key < 3:
            queue.add(key + 1, now_s())
        if key == 0:
            queue.remove(10)

    queue = DeadlineQueue(asyncio.get_running_loop(), on_passed)
    queue.add(0, now_s())
    queue.add(10, now_s() + 0.2)
    await eventually(lambda: passed == [0, 1, 2, 3])
    queue.close()


async def test_one_that_raises_does_not_keep_the_others_from_being_called_later() -> None:
    passed: list[int] = []

    def on_passed(key: int) -> None:
        if key == 0:
            raise RuntimeError("tripped")
        passed.append(key)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    queue = DeadlineQueue(loop, on_passed)
    queue.add(0, now_s())
    queue.add(1, now_s() + 0.1)
    await eventually(lambda: passed == [1])
    queue.close()


async def test_an_empty_or_closed_queue_wakes_nobody() -> None:
    queue = DeadlineQueue(asyncio.get_running_loop(), lambda _: None)
    assert queue._timer is None
    queue.add(1, time.monotonic() + 60)
    queue.close()
    assert queue._timer is None
    queue.close()
