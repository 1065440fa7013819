"""When a zygote starts the next node, and when it gives up. Decides only; times are monotonic seconds."""

from __future__ import annotations

from typing import Final

#: Pauses before the next node, in seconds: doubled each time, the first again after a node that stayed.
NODE_DELAY_S: Final = (0.2, 5.0)
#: How long a node must have been connected to count as one that stayed.
NODE_STAYED_S: Final = 10.0
#: With nothing left to look after, give up after this many nodes in a row that never connected.
NODE_ATTEMPTS: Final = 6


class Respawn:
    """The nodes that one zygote starts, one after the other."""

    def __init__(self) -> None:
        self.due_s: float | None = None  #: when the next one is started; None: none is wanted
        self._delay_s = NODE_DELAY_S[0]
        self._failed = 0

    @property
    def has_given_up(self) -> bool:
        """Too many in a row never connected."""
        return self._failed >= NODE_ATTEMPTS

    def plan(self, now_s: float) -> float:
        """One shall be started; in how many seconds."""
        delay_s = self._delay_s
        self.due_s = now_s + delay_s
        self._delay_s = min(delay_s * 2, NODE_DELAY_S[1])
        return delay_s

    def cancel(self) -> None:
        """None shall be started any more."""
        self.due_s = None

    def is_due(self, now_s: float) -> bool:
        return self.due_s is not None and now_s >= self.due_s

    def patience_ms(self, now_s: float) -> int | None:
        """How long `poll` may wait; None: for ever."""
        return None if self.due_s is None else max(0, int((self.due_s - now_s) * 1000) + 1)

    def began(self) -> None:
        """One was started; it counts as failed until it connects."""
        self._failed += 1

    def connected(self) -> None:
        """There is one."""
        self.due_s = None
        self._failed = 0

    def lost(self, stayed_s: float) -> None:
        """It went, having been connected for so long."""
        if stayed_s >= NODE_STAYED_S:
            self._delay_s = NODE_DELAY_S[0]
            self._failed = 0
