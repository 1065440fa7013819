"""Where requests wait while their agent is being woken. Their deadlines run on; who waits in vain is ended by the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agentkit.errors import CallError, Overloaded

if TYPE_CHECKING:
    from agentkit.agent.context import Serving


class PendingRequests:
    """Of one dispatcher."""

    def __init__(
        self, room: int, admit: Callable[[Serving], None], refuse: Callable[[Serving, CallError], None]
    ) -> None:
        """`room`: how many may wait. `admit`: what is not for the sleeping agent at all, but about it. `refuse`: there is no room."""
        self._room, self._admit, self._refuse = room, admit, refuse
        self._waiting: list[Serving] = []

    def opened(self, wake: Callable[[str], None]) -> Callable[[Serving], None]:
        """What takes requests from now on. `wake` is told of each."""

        def take(work: Serving) -> None:
            if work.method.is_control:
                self._admit(work)
                return
            if len(self._waiting) >= self._room:
                self._waiting = [one for one in self._waiting if one.inbound.work is one]  # whoever gave up meanwhile
            if len(self._waiting) >= self._room:
                why = f"it is being woken, and {self._room:,} calls wait for that"
                self._refuse(work, Overloaded(why, details={"retry_after_ms": 100}))
                return
            self._waiting.append(work)
            wake(f"call of {work.method.name}")

        return take

    def leave(self) -> list[Serving]:
        """Those who wait, or have waited: nobody does any more."""
        waiting, self._waiting = self._waiting, []
        return waiting
