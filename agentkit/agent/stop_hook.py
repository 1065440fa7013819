"""`on_stop`, within its time and whatever it raises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from agentkit.observe.log import get_logger

if TYPE_CHECKING:
    from agentkit.agent.base import BaseAgent
    from agentkit.agent.selfreport import SelfReports

log = get_logger("agentkit.runtime")


async def run_on_stop(agent: BaseAgent, limit_s: float, reports: SelfReports) -> None:
    """Returns when it has returned or raised, which is reported, or after `limit_s` seconds: then it is cancelled and left behind."""
    # Not wait_for: it would wait for ever for an `on_stop` that takes no notice of being cancelled
    stopping = asyncio.get_running_loop().create_task(_awaited(agent.on_stop()), name=f"{agent.name}:on_stop")
    _, left = await asyncio.wait((stopping,), timeout=limit_s)
    if left:
        log.error("agent.on_stop_too_slow", limit_s=round(limit_s, 1))
        stopping.cancel()
        await asyncio.wait((stopping,), timeout=0.1)
    elif not stopping.cancelled() and (failure := stopping.exception()) is not None:
        log.error("agent.on_stop_failed", exc_info=failure)
        reports.life_failed("on_stop", failure)


async def _awaited(hook: Awaitable[None]) -> None:
    """What an author's code ends with as an exception that a task can hold: SystemExit would end the loop."""
    try:
        await hook
    except SystemExit as exc:
        raise RuntimeError(f"raised SystemExit: {exc}") from exc
