"""What an agent may set about its calls: those that it makes, and those that it serves. The defaults need no thought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from agentkit.errors import ConfigError

#: Who of several instances gets a call; what each means stands in directory/balance.py.
Balance = Literal["two_choices", "least_in_flight", "round_robin", "hash"]
BALANCES: Final = ("two_choices", "least_in_flight", "round_robin", "hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPolicy:
    """How an agent calls others: `call_policy` of its class for all of them, `call_policies["Name"]` or
    `call_policies["Name.method"]` for some. What one call says itself (`attempts=`, `balance=`) goes before both."""

    attempts: int = 3  #: tries of one call, the first included; 1: never again
    retry_wait_s: float = 1.0  #: before the second try, when it has to go to the same instance
    retry_factor: float = 2.0  #: the wait grows so from try to try
    retry_jitter: float = 0.2  #: each wait is up to so much of itself shorter or longer
    retry_budget: float = 0.1  #: retries per call of one peer, over time: the most that retries add to its load
    retry_reserve: int = 10  #: retries that may be made at once before the budget counts
    breaker_failures: int = 5  #: failures in a row that open the breaker of an instance; 0: never
    breaker_rest_s: float = 30.0  #: how long it stays open before one call may probe
    balance: Balance = "two_choices"

    def __post_init__(self) -> None:
        _at_least("CallPolicy", self, 1, "attempts", "retry_factor")
        _at_least(
            "CallPolicy",
            self,
            0,
            "breaker_failures",
            "retry_wait_s",
            "retry_jitter",
            "retry_budget",
            "retry_reserve",
            "breaker_rest_s",
        )
        if self.retry_jitter > 1:
            raise ConfigError(at="CallPolicy(retry_jitter=)", got=self.retry_jitter, want="0 to 1")
        checked_balance(self.balance, at="CallPolicy(balance=)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePolicy:
    """What an agent lets in: `serve_policy` of its class. `@rpc(...)` of a method goes before it."""

    running: int = 64  #: async handlers that run at once
    threads: int = 8  #: plain `def` handlers that run at once: each has a thread
    queue: int = 1024  #: requests that may wait for a turn, at each limit
    queue_wait_s: float = 0.05  #: how long; or as long as the handler itself takes, should that be longer
    idempotency_window_s: float = 300.0  #: how long an answer is kept for whoever repeats its key
    idempotency_entries: int = 10_000
    idempotency_bytes: int = 16 * 1024 * 1024
    cache_entries: int = 1_000  #: of each method with `cache=`
    cache_bytes: int = 16 * 1024 * 1024  #: of each method with `cache=`

    def __post_init__(self) -> None:
        _at_least("ServePolicy", self, 1, "running", "threads")
        _at_least("ServePolicy", self, 0, "queue", "queue_wait_s", "idempotency_window_s", "idempotency_entries")
        _at_least("ServePolicy", self, 0, "idempotency_bytes", "cache_entries", "cache_bytes")


def checked_balance(balance: str, *, at: str) -> None:
    """ConfigError, naming `at`, for a word that is no way to balance."""
    if balance not in BALANCES:
        raise ConfigError(at=at, got=balance, want=f"one of {', '.join(BALANCES)}")


def _at_least(where: str, policy: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(policy, name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
            raise ConfigError(at=f"{where}({name}=)", got=value, want=f"a number, {least:g} or more")


#: What an agent has that sets nothing.
USUAL_CALLS: Final = CallPolicy()
USUAL_SERVICE: Final = ServePolicy()
#: What scripts have: whoever asks by hand, or again and again until somebody is there, wants the truth each time.
SCRIPT_CALLS: Final = CallPolicy(breaker_failures=0)
