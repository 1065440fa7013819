"""An agent's `@every` methods: when each is due, and the tasks that run them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from agentkit.agent.decorators import Every, marked
from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.clock import now_s
from agentkit.observe.log import get_logger

log = get_logger("agentkit.upkeep")


async def _invoke(function: Callable[..., Any], owner: object) -> None:
    """Run an author's method: on the loop when it is async, on a thread when it is not."""
    if inspect.iscoroutinefunction(function):
        await function(owner)
    else:
        await asyncio.to_thread(function, owner)


def resumed(owner: object, ran_s: Mapping[str, float]) -> dict[str, float]:
    """When `@every` methods count as run last that did so before a deep sleep: what was missed meanwhile is one run."""
    if not ran_s:
        return {}
    now = now_s()
    every = {name: options.interval_s for name, _, options in marked(type(owner), Every)}
    return {name: min(max(ran_s[name], now - each_s), now) for name, each_s in every.items() if name in ran_s}


def due_s(owner: object, timers: TimerThrottle, last: Mapping[str, float]) -> dict[str, float]:
    """When each `@every` method that is waited for is due at the pace of now; monotonic."""
    return {
        name: last[name] + (timers.interval_s(options.interval_s) if options.slows else options.interval_s)
        for name, _, options in marked(type(owner), Every)
        if name in last
    }


def repeating(
    owner: Any,
    on_failed: Callable[[str, BaseException], bool] = lambda *_: True,
    timers: TimerThrottle | None = None,
    last: MutableMapping[str, float] | None = None,
) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
    """(name, endless coroutine function) for each `@every` method. `on_failed`: whether what it raised is to be logged. `last`: when
    each ran last, monotonic; kept up to date, and begun with where something stands in it."""
    lasts = {} if last is None else last

    def repeat(name: str, function: Callable[..., Any], options: Every) -> Callable[[], Awaitable[None]]:
        async def loop() -> None:
            own = (timers if options.slows else None) or TimerThrottle()
            last_s = lasts.setdefault(name, now_s())
            while True:
                await own.until(last_s, options.interval_s)
                try:
                    await _invoke(function, owner)
                except Exception as exc:
                    if on_failed(name, exc):
                        log.error("every.failed", method=name, exc_info=exc)
                # late rather than in a burst: runs that were missed are left out
                interval_s = own.interval_s(options.interval_s)
                last_s = lasts[name] = max(last_s + interval_s, now_s() - interval_s)

        async def lead() -> None:
            await owner.leader(options.leader).lead(lambda _: loop())

        return lead if options.leader else loop

    return [(name, repeat(name, function, options)) for name, function, options in marked(type(owner), Every)]
