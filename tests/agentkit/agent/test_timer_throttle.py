"""The pace of an agent's own timers."""

from __future__ import annotations

import asyncio

import pytest

from agentkit.agent.hibernation.timer_throttle import SLOWEST_S, TimerThrottle, slowed_s
from agentkit.clock import now_s


@pytest.mark.parametrize(
    ("interval_s", "asleep_s"),
    [(0.01, 0.1), (1.0, 10.0), (6.0, 60.0), (10.0, SLOWEST_S), (60.0, 60.0), (3600.0, 3600.0)],
)
def test_what_recurs_is_slowed_tenfold_but_comes_once_a_minute_at_least(interval_s: float, asleep_s: float) -> None:
    assert slowed_s(interval_s) == pytest.approx(asleep_s)
    pace = TimerThrottle()
    assert pace.interval_s(interval_s) == interval_s
    pace.change(is_slow=True)
    assert pace.interval_s(interval_s) == slowed_s(interval_s)


async def test_who_waits_slowly_goes_on_at_its_own_pace_when_the_agent_wakes() -> None:
    pace = TimerThrottle()
    pace.change(is_slow=True)
    due: list[float] = []
    waits = (pace.until(now_s(), 1.0), pace.until_aligned(0.05, asleep_s=1e9, due=due.append))
    overdue, aligned = (asyncio.ensure_future(wait) for wait in waits)
    await asyncio.sleep(0)
    began_s = now_s()
    pace.change(is_slow=False)
    await aligned
    assert len(due) >= 2
    assert due[0] - began_s > 60 > due[-1] - began_s
    await overdue
    assert now_s() - began_s < slowed_s(1.0)


async def test_who_waits_is_slowed_when_the_agent_falls_asleep() -> None:
    pace = TimerThrottle()
    waiting = asyncio.ensure_future(pace.until(now_s(), 0.05))
    await asyncio.sleep(0)
    pace.change(is_slow=True)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_who_steps_aside_comes_a_little_after_each_multiple() -> None:
    timers, period_s = TimerThrottle(), 0.05
    timers.step_aside(0.02)
    due: list[float] = []
    for _ in range(3):
        await timers.until_aligned(period_s, due=due.append)
    assert [at_s % period_s for at_s in due] == pytest.approx([0.02] * 3, abs=1e-6)
