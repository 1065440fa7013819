"""What tests of calls rely on: that late calls are found, and what remains."""

from __future__ import annotations

import asyncio

import pytest

from agentkit.errors import DeadlineExceeded
from tests.agentkit.support import in_time


async def _ends_after(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise DeadlineExceeded("late")


async def test_a_call_that_ends_later_than_its_deadline_and_100_ms_is_found() -> None:
    assert [type(end) for end in await in_time([_ends_after(0.05)], 0.05)] == [DeadlineExceeded]
    with pytest.raises(AssertionError, match="after its deadline"):
        await in_time([_ends_after(0.05), _ends_after(0.8)], 0.05)
