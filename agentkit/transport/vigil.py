"""Whether the peer of a channel still lives: a process that was stopped, or a machine that was cut off, closes no connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agentkit.clock import now_s
from agentkit.errors import CallError, Draining, Unreachable

#: With calls open and nothing heard for so long, the peer is asked for a sign of life, in seconds.
PING_AFTER_S: Final = 2.0
#: With nothing heard for so long in spite of it, it counts as lost, in seconds.
LOST_AFTER_S: Final = 10.0


class Vigil:
    """Kept only while calls are open, or the last that ended had no answer: an idle channel wakes nobody. Belongs to the running loop."""

    __slots__ = ("_ask", "_is_owed", "_loop", "_lose", "_since_s", "_timer", "has_met", "heard_s", "missed_s")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        is_owed: Callable[[], bool],
        ask: Callable[[], None],
        lose: Callable[[str], None],
    ) -> None:
        """`is_owed`: whether the peer owes an answer. `ask` it for a sign of life. `lose` it, because of what is said."""
        self.heard_s = now_s()  #: when the peer last said anything; at first: when the channel was opened
        self._since_s = self.heard_s
        #: when a deadline passed without an answer. A peer that stands still leaves what was sent to it in libzmq's queue, which has no
        #: other bound: so it is asked on, and given up with all that it has not read, though nobody waits for it any more.
        self.missed_s = 0.0
        self.has_met = False  #: it has said WELCOME; before, the handshake has limits of its own
        self._loop, self._is_owed, self._ask, self._lose = loop, is_owed, ask, lose
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_kept(self) -> bool:
        return self._timer is not None

    def begin(self) -> None:
        """A call was made: from now on silence counts."""
        self._since_s = now_s()
        self._timer = self._loop.call_later(PING_AFTER_S, self._check)

    def end(self) -> None:
        """The channel is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if not self._is_owed() and self.missed_s <= self.heard_s:
            return
        silent_s = now_s() - max(self.heard_s, self._since_s)
        if self.has_met:
            if silent_s >= LOST_AFTER_S:
                self._lose(f"silent for {silent_s:.0f} s")
                return
            if silent_s >= PING_AFTER_S:
                self._ask()
        self._timer = self._loop.call_later(PING_AFTER_S, self._check)


def never_met(label: str, endpoint: str, why: str, *, was_accepted: bool) -> CallError:
    """What the calls of a channel end with that was lost before WELCOME. Nothing was sent. Accepted and then dropped: a dying
    process, worth another try. Never accepted: nobody listens."""
    if was_accepted:
        return Draining(f"{label}: {why} before WELCOME")
    return Unreachable(f"{label}: nobody listens at {endpoint}")
