"""An agent's `@health_check` methods: run when they are due, each within its time, for the board that its health is read from.

An idle agent wakes at most once in 5 s: all periods are aligned to multiples of themselves on the machine's clock, so that those
that can coincide do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from agentkit.agent.decorators import HealthCheck, marked
from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.clock import now_s
from agentkit.health.checks import CheckPolicy, HealthBoard
from agentkit.observe.log import get_logger

log = get_logger("agentkit.upkeep")


def _forget_outcome(future: asyncio.Future[None]) -> None:
    """Nobody waits for a check that took too long."""
    if not future.cancelled():
        future.exception()


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
