"""What an agent does by itself while it serves: health checks, `@every`, and the tick that feeds the watchdog.

An idle agent wakes at most once in 5 s: all periods are aligned to multiples of themselves on the machine's clock, so that those
that can coincide do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from agentkit.agent.decorators import Every, HealthCheck, marked
from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.clock import now_s
from agentkit.health.checks import CheckPolicy, HealthBoard
from agentkit.observe.log import get_logger

log = get_logger("agentkit.upkeep")

#: Longest time between two ticks, in seconds; while the agent sleeps.
TICK_S: Final = 10.0
TICK_ASLEEP_S: Final = 60.0


def _forget_outcome(future: asyncio.Future[None]) -> None:
    """Nobody waits for a check that took too long."""
    if not future.cancelled():
        future.exception()


async def invoke(function: Callable[..., Any], owner: object) -> None:
    """Run an author's method: on the loop when it is async, on a thread when it is not."""
    if inspect.iscoroutinefunction(function):
        await function(owner)
    else:
        await asyncio.to_thread(function, owner)


class Checks:
    """Runs the `@health_check` methods of an agent and keeps the board."""

    def __init__(
        self,
        owner: object,
        policy: CheckPolicy,
        on_change: Callable[[], None],
        on_failed: Callable[[str, str, int, BaseException | None], None] = lambda *_: None,
        timers: TimerThrottle | None = None,
    ) -> None:
        """`on_change`: the verdict is another one. `on_failed`: name, reason, how often in a row, what it raised."""
        self.board = HealthBoard(policy)
        self._owner = owner
        self._policy = policy
        self._on_change = on_change
        self._on_failed = on_failed
        self._timers = timers or TimerThrottle()
        self._running: dict[str, asyncio.Future[None]] = {}  # on threads that went past their time limit
        self._checks: list[tuple[str, Callable[..., Any], HealthCheck]] = marked(type(owner), HealthCheck)
        self.board.declare(name for name, _, _ in self._checks)

    async def once(self) -> None:
        """Every check, all at the same time."""
        if not self._checks:
            return
        await asyncio.gather(*(self._check(name, function, options) for name, function, options in self._checks))

    def forever(self) -> list[Callable[[], Awaitable[None]]]:
        """One task for each different interval; none without checks."""
        intervals: dict[float, list[tuple[str, Callable[..., Any], HealthCheck]]] = {}
        for check in self._checks:
            intervals.setdefault(check[2].interval_s or self._policy.interval_s, []).append(check)

        def repeat(
            interval_s: float, checks: list[tuple[str, Callable[..., Any], HealthCheck]]
        ) -> Callable[[], Awaitable[None]]:
            async def loop() -> None:
                while True:
                    await self._timers.until_aligned(interval_s)
                    await asyncio.gather(*(self._check(*check) for check in checks))

            return loop

        return [repeat(interval_s, checks) for interval_s, checks in intervals.items()]

    async def _check(self, name: str, function: Callable[..., Any], options: HealthCheck) -> None:
        began_s = now_s()
        limit_s = options.timeout_s or self._policy.timeout_s
        before = self.board.verdict
        try:
            await asyncio.wait_for(self._invoke(name, function), limit_s)
        except TimeoutError as exc:
            self._failed(name, str(exc) or f"no result within {limit_s:g} s", began_s, None)
        except Exception as exc:
            if not self.board.checks[name].failures:  # the first of a row; the rest would say the same
                log.warning("check.failed", check=name, exc_info=exc)
            self._failed(name, f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__, began_s, exc)
        else:
            self.board.passed(name, now_s(), now_s() - began_s)
        if self.board.verdict != before:
            self._on_change()

    def _failed(self, name: str, why: str, began_s: float, exc: BaseException | None) -> None:
        self.board.failed(name, why, now_s(), now_s() - began_s)
        self._on_failed(name, why, self.board.checks[name].failures, exc)

    async def _invoke(self, name: str, function: Callable[..., Any]) -> None:
        """Run one check; never beside itself on a second thread, else one that hangs would use up all of them."""
        if inspect.iscoroutinefunction(function):
            await function(self._owner)
            return
        running = self._running.get(name)
        if running is not None and not running.done():
            raise TimeoutError("it still runs since an earlier round")
        running = self._running[name] = asyncio.ensure_future(asyncio.to_thread(function, self._owner))
        running.add_done_callback(_forget_outcome)
        await asyncio.shield(running)


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
                    await invoke(function, owner)
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
