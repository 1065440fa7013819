"""The way into deep sleep, as far as every agent has it: what it takes is imported when somebody sleeps deep for the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentkit.agent.periodic import due_s
from agentkit.clock import now_s

if TYPE_CHECKING:
    from agentkit.agent.hibernation.deep_sleep import DeepSleep
    from agentkit.runtime import AgentRuntime
    from agentkit.settings import Depth


class DeepSleepEntry:
    """Of one agent; belongs to its loop."""

    def __init__(self, runtime: AgentRuntime) -> None:
        self.is_asleep = False  #: it ends to be started again when somebody calls
        self.exit_code = 0  #: of a life without a failure: who wakes it may want to know that it sleeps
        self._runtime = runtime
        self._deep: DeepSleep | None = None

    async def deepen(self) -> bool:
        """See deep_sleep_retries.Deepen."""
        return await self._sleep().deepen()

    def told(self, depth: Depth) -> None:
        """An operator wants it to sleep, and hears from the node what became of that."""
        self._runtime._tasks.spawn("sleep", lambda: self._sleep().obey(depth))

    def done(self, exit_code: int) -> None:
        """All is done that a deep sleep needs: the agent stops."""
        self.is_asleep, self.exit_code = True, exit_code
        self._runtime.request_stop()

    def due_in_s(self) -> float | None:
        """When the first `@every` method is due; None: there is none."""
        runtime = self._runtime
        due = due_s(runtime.agent, runtime._timers, runtime._exclusive.last_s)
        return max(0.0, min(due.values()) - now_s()) if due else None

    def promised_s(self) -> float:
        """For how long an answer is promised to who repeats an idempotency key."""
        return max(0.0, self._runtime._dispatcher.sharing.promised_until_s - now_s())

    def _sleep(self) -> DeepSleep:
        if self._deep is None:
            from agentkit.agent.hibernation.deep_sleep import DeepSleep

            self._deep = DeepSleep(self._runtime)
        return self._deep
