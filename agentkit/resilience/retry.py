"""Whether a call that failed is made again, after how long, and how many such there may be. No I/O, no clock."""

from __future__ import annotations

from agentkit.errors import CallError, Overloaded
from agentkit.resilience.policy import CallPolicy


def may_retry(error: CallError, *, idempotent: bool) -> bool:
    """Whether another try may help, and can do no harm: the handler certainly did not run, or may run twice.

    A handler's own error is its answer and is never asked for again; nor is what a deadline ended, as no time is left."""
    match error.code:
        case "overloaded":
            return error.retry_safe
        case "unreachable":
            return error.retry_safe and not error.from_peer
        case "peer_lost":
            return (error.retry_safe or idempotent) and not error.from_peer
        case "internal" | "cancelled":
            return idempotent and error.from_peer
        case _:
            return False


def wait_s(policy: CallPolicy, tries: int, error: CallError, draw: float) -> float:
    """Seconds before the next try, after `tries` of them; `draw`: a random number from 0 to 1."""
    growth = policy.retry_factor ** (tries - 1)
    if isinstance(error, Overloaded):
        # It knows best; later rather than earlier, and not all at once
        return float(error.retry_after_ms / 1000 * growth * (1 + draw / 2))
    return float(policy.retry_wait_s * growth * (1 + policy.retry_jitter * (2 * draw - 1)))


class RetryBudget:
    """Retries that one peer can still be burdened with: each call earns `share` of one, each retry spends one; at most
    `reserve` are saved up, and so many there are at first."""

    __slots__ = ("reserve", "share", "tokens")

    def __init__(self, share: float, reserve: float) -> None:
        self.share, self.reserve = share, reserve
        self.tokens = float(reserve)

    def earn(self) -> None:
        """A call was begun."""
        if self.tokens < self.reserve:
            self.tokens = min(self.reserve, self.tokens + self.share)

    def spend(self) -> bool:
        """Whether there may be one more retry, which is then paid for."""
        if self.tokens < 0.999:  # tenths do not sum up to 1
            return False
        self.tokens -= 1
        return True
