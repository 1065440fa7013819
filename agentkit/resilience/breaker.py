"""The breaker of one instance of a peer: after failures in a row it gets no calls for a while, then one to see whether it is
well again. No I/O, no clock."""

from __future__ import annotations

from typing import Final

from agentkit.errors import CallError

#: Codes that speak against the instance itself. What its handlers raise and what it refuses in order is an answer.
FAILURES: Final = frozenset({"unreachable", "peer_lost", "deadline_exceeded", "internal"})
#: Codes that only a caller itself can raise: told by a peer, they are about somebody that its handler called.
_ONLY_MINE: Final = frozenset({"unreachable", "peer_lost"})


def is_failure(error: CallError) -> bool:
    """Whether `error` counts against the instance that was called."""
    return error.code in FAILURES and not (error.from_peer and error.code in _ONLY_MINE)


class Breaker:
    """Closed until `limit` failures came in a row; open for `rest_s`; then half-open: one call at a time may probe."""

    __slots__ = ("_last_event", "failures", "limit", "opened_s", "probe_s", "rest_s")

    def __init__(self, limit: int, rest_s: float) -> None:
        self.limit, self.rest_s = limit, rest_s
        self.failures = 0
        self.opened_s: float | None = None  #: None: closed
        self.probe_s: float | None = None  #: when the probe that is under way began
        self._last_event: object = None

    @property
    def is_open(self) -> bool:
        """Open or half-open."""
        return self.opened_s is not None

    def allows(self, now_s: float) -> bool:
        """Whether a call may go there now."""
        if self.opened_s is None:
            return True
        if now_s - self.opened_s < self.rest_s:
            return False
        # a probe that nobody has told the end of for so long is over, whatever became of it
        return self.probe_s is None or now_s - self.probe_s >= max(self.rest_s, 1.0)

    def begins(self, now_s: float) -> None:
        """A call goes there; on a half-open breaker it is the probe."""
        if self.opened_s is not None:
            self.probe_s = now_s

    def failed(self, now_s: float, event: object = None) -> bool:
        """A call failed; whether that opened it. `event`: what took it along (a connection), which counts once however many
        calls it had."""
        if event is not None and event is self._last_event and self.opened_s is None:
            return False
        self._last_event = event
        self.failures += 1
        was_open = self.opened_s is not None
        if was_open and self.probe_s is None:
            return False  # begun before it opened: says nothing new
        if self.failures >= self.limit:
            self.opened_s, self.probe_s = now_s, None
        return self.opened_s is not None and not was_open

    def released(self) -> None:
        """A call ended without a word about the instance (it was cancelled, or moved): the next one may probe."""
        self.probe_s = None

    def left_s(self, now_s: float) -> float:
        """Seconds until a probe may go, 0 when it may."""
        return 0.0 if self.opened_s is None else max(0.0, self.opened_s + self.rest_s - now_s)
