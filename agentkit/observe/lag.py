"""How late the event loop runs what was due: measured where something is due anyway, never by a timer of its own."""

from __future__ import annotations

from typing import Final

#: A late moment is remembered for one to two of these: longer than the agent's tick, shorter than a scrape interval.
WINDOW_S: Final = 15.0


class LoopLag:
    """The worst lateness of the last WINDOW_S to 2 * WINDOW_S seconds. Pure: told times, reads no clock.

    Told by the agent's tick (`due` when it is scheduled, `ran` when it runs) and by dispatch (`late`, from a request's
    arrival to its handler's first step). Whoever asks while a tick is overdue counts that too, so a health request
    served right after a long block already shows it."""

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._worst_before_s = 0.0
        self._window_ends_s = 0.0
        self._due_s: float | None = None

    def due(self, at_s: float) -> None:
        """The loop has been asked to run something at `at_s`."""
        self._due_s = at_s

    def ran(self, now_s: float) -> None:
        """What was due runs now."""
        if self._due_s is not None:
            self.late(now_s - self._due_s, now_s)
            self._due_s = None

    def late(self, by_s: float, now_s: float) -> None:
        """Something ran `by_s` seconds after it could have."""
        if now_s >= self._window_ends_s:
            self._turn(now_s)
        if by_s > self._worst_s:
            self._worst_s = by_s

    def worst_s(self, now_s: float) -> float:
        """Seconds; 0.0 when nothing was late."""
        if now_s >= self._window_ends_s:
            self._turn(now_s)
        overdue_s = now_s - self._due_s if self._due_s is not None else 0.0
        return max(self._worst_s, self._worst_before_s, overdue_s, 0.0)

    def _turn(self, now_s: float) -> None:
        # Windows follow each other without gaps, so nothing is kept for longer than two; after a longer silence all is old.
        silent = now_s >= self._window_ends_s + WINDOW_S
        self._worst_before_s = 0.0 if silent else self._worst_s
        self._worst_s = 0.0
        self._window_ends_s = WINDOW_S + (now_s if silent else self._window_ends_s)
