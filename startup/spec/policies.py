"""`serve` and `calls` of an agent: what it lets in, and how it calls others (docs/calls.md). What is not said here is the class's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field

from startup.spec.fields import Duration, Model, Size

Balance = Literal["two_choices", "least_in_flight", "round_robin", "hash"]


class IdempotencyModel(Model):
    window: Duration = Field(300.0, description="How long an answer is kept for whoever repeats its key.")
    entries: int = Field(10_000, ge=0, description="Answers kept at most; the oldest go first.")
    size: Size = Field(16 * 2**20, description="Memory of them at most.")


class CacheModel(Model):
    entries: int = Field(1_000, ge=0, description="Answers of one cached method at most.")
    size: Size = Field(16 * 2**20, description="Memory of them at most.")


class ServedMethodModel(Model):
    timeout: Duration = Field(5.0, gt=0, description="The deadline of calls whose caller names none.")
    concurrency: int = Field(64, ge=1, description="How many of it run at once; 1 serialises.")
    queue: int = Field(
        1024, ge=0, description="How many more may wait for a turn; needs `concurrency`, here or in @rpc."
    )
    queue_wait: Duration = Field(0.05, description="How long one may wait for a turn; 0: not at all.")
    priority: Literal["normal", "high"] = Field("normal", description="high: before others, beyond the agent's limit.")
    cache: Duration = Field(0.0, description="How long an answer serves whoever asks the same; 0: no cache.")
    balance: Balance = Field("two_choices", description="Which of several replicas its callers choose.")
    key: str = Field("", description="The argument that `balance: hash` goes by.")


class ServeModel(Model):
    running: int = Field(64, ge=1, description="Async handlers that run at once.")
    threads: int = Field(8, ge=1, description="Plain `def` handlers that run at once.")
    queue: int = Field(1024, ge=0, description="Requests that may wait for a turn, at each limit.")
    queue_wait: Duration = Field(
        0.05, description="How long; or as long as such a handler usually takes, should that be longer."
    )
    idempotency: IdempotencyModel = Field(
        default_factory=lambda: IdempotencyModel(), description="Answers kept for repeated idempotency keys."
    )
    cache: CacheModel = Field(default_factory=lambda: CacheModel(), description="Limits of each cached method.")
    methods: dict[str, ServedMethodModel] = Field(
        default_factory=dict, description="Method -> what goes before its @rpc(...)."
    )


class RetryModel(Model):
    wait: Duration = Field(1.0, description="Before the second try, when it has to go to the same instance.")
    factor: float = Field(2.0, ge=1, description="The wait grows so from try to try.")
    jitter: float = Field(0.2, ge=0, le=1, description="Each wait is up to so much of itself shorter or longer.")
    budget: float = Field(0.1, ge=0, description="Retries per call of one peer, over time.")
    reserve: int = Field(10, ge=0, description="Retries that may be made at once before the budget counts.")


class BreakerModel(Model):
    failures: int = Field(5, ge=0, description="In a row, of one instance: then it gets no calls; 0: never.")
    rest: Duration = Field(30.0, description="How long, before one call may probe.")


class CalledModel(Model):
    timeout: Duration = Field(5.0, gt=0, description="Of calls that name none, in place of what the method says.")
    attempts: int = Field(3, ge=1, description="Tries of one call, the first included.")
    retry: RetryModel = Field(default_factory=lambda: RetryModel(), description="How calls are made again.")
    breaker: BreakerModel = Field(
        default_factory=lambda: BreakerModel(), description="When an instance that fails is left alone."
    )
    balance: Balance = Field("two_choices", description="Which of several replicas gets a call.")
    key: str = Field("", description="The argument that `balance: hash` goes by.")


class CallsModel(CalledModel):
    to: dict[str, CalledModel] = Field(
        default_factory=dict, description="The same for calls to one agent (`Name`) or to one method (`Name.method`)."
    )


#: Key of the file -> agentkit's own name for it (resilience.policy, agent.decorators.Rpc).
_SERVE: Final[Mapping[str, Any]] = {
    "running": "running",
    "threads": "threads",
    "queue": "queue",
    "queue_wait": "queue_wait_s",
    "idempotency": {"window": "idempotency_window_s", "entries": "idempotency_entries", "size": "idempotency_bytes"},
    "cache": {"entries": "cache_entries", "size": "cache_bytes"},
}
_SERVED: Final[Mapping[str, Any]] = {
    **{name: name for name in ("concurrency", "queue", "priority", "balance", "key")},
    **{name: f"{name}_s" for name in ("timeout", "queue_wait", "cache")},
}
_CALLED: Final[Mapping[str, Any]] = {
    "timeout": "timeout_s",
    "attempts": "attempts",
    "retry": {
        "wait": "retry_wait_s",
        "factor": "retry_factor",
        "jitter": "retry_jitter",
        "budget": "retry_budget",
        "reserve": "retry_reserve",
    },
    "breaker": {"failures": "breaker_failures", "rest": "breaker_rest_s"},
    "balance": "balance",
    "key": "key",
}


def policy_of(serve: ServeModel, calls: CallsModel) -> dict[str, Any]:
    """What they say, and nothing else, as the agent's process wants to be told it (resilience.policy.FilePolicy.read)."""
    told = {
        "serve": _said(serve, _SERVE),
        "methods": {name: _said(said, _SERVED) for name, said in serve.methods.items()},
        "calls": _said(calls, _CALLED),
        "to": {name: _said(said, _CALLED) for name, said in calls.to.items()},
    }
    return {name: value for name, value in told.items() if value}


def _said(model: Model, names: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in names.items():
        if key in model.model_fields_set:
            value = getattr(model, key)
            found |= _said(value, name) if isinstance(value, Model) else {name: value}
    return found
