"""What authors mark their methods with: `@rpc`, `@every`, `@health_check`, the options that each takes, and how marks are found."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, overload

from agentkit.errors import ConfigError
from agentkit.names import is_name
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S
from agentkit.resilience.policy import PRIORITIES, Balance, Priority, checked_balance
from agentkit.units import seconds

F = TypeVar("F", bound=Callable[..., Any])

#: What a call of a method that yields gets when nobody says anything, in seconds: it covers the whole stream.
STREAM_TIMEOUT_S: Final = 60.0

_MARKS: Final = "_agentkit_marks"
_MARK: Final = "__agentkit__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """Options of `@rpc`."""

    timeout_s: float = DEFAULT_TIMEOUT_S
    idempotent: bool = False
    concurrency: int | None = None
    queue: int | None = None
    queue_wait_s: float | None = None
    priority: Priority = "normal"
    cache_s: float | None = None
    balance: Balance | None = None
    key: str = ""
    role: str | None = None

    def __post_init__(self) -> None:
        if self.priority not in (*PRIORITIES, "control"):
            raise ConfigError(at="@rpc(priority=)", got=self.priority, want=f"one of {', '.join(PRIORITIES)}")
        for name, value, least in (("concurrency", self.concurrency, 1), ("queue", self.queue, 0)):
            if value is not None and value < least:
                raise ConfigError(
                    at=f"@rpc({name}=)",
                    got=value,
                    want=f"{least} or more",
                    fix="leave it out for the agent's own limit",
                )
        if self.queue is not None and self.concurrency is None:
            raise ConfigError(
                at="@rpc(queue=)", got=self.queue, want="concurrency= beside it: that is what is waited for"
            )
        if self.balance is not None:
            checked_balance(self.balance, at="@rpc(balance=)")
        if (self.balance == "hash") != bool(self.key):
            raise ConfigError(
                at="@rpc(balance=, key=)", got=(self.balance, self.key),
                want='balance="hash" and key="ARGUMENT", or neither of them',
            )  # fmt: skip
        if self.role is not None and not is_name(self.role):
            raise ConfigError(at="@rpc(role=)", got=self.role, want="a role of a key, such as operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """Options of `@every`."""

    interval_s: float
    leader: str = ""
    slows: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """Options of `@health_check`."""

    interval_s: float | None = None
    timeout_s: float | None = None


@overload
def rpc(function: F, /) -> F: ...
@overload
def rpc(
    *,
    timeout: str | float | None = ...,
    idempotent: bool = ...,
    concurrency: int | None = ...,
    queue: int | None = ...,
    queue_wait: str | float | None = ...,
    priority: Priority = ...,
    cache: str | float | None = ...,
    balance: Balance | None = ...,
    key: str = ...,
    role: str | None = ...,
) -> Callable[[F], F]: ...
def rpc(
    function: Any = None,
    /,
    *,
    timeout: str | float | None = None,
    idempotent: bool = False,
    concurrency: int | None = None,
    queue: int | None = None,
    queue_wait: str | float | None = None,
    priority: Priority = "normal",
    cache: str | float | None = None,
    balance: Balance | None = None,
    key: str = "",
    role: str | None = None,
) -> Any:
    """Make a method callable by other agents.

    An `async def` runs on the event loop and must not block it; a plain `def` runs on a worker thread and may block. An `async
    def` with `yield` streams its results; a parameter annotated `AsyncIterator[...]` takes a stream (docs/streams.md).
    `timeout`: the deadline of calls whose caller names none ("30s", or seconds; default 5 s, for a stream of results 60 s).
    `idempotent`: running it twice does no harm, so a call whose fate is unknown may be repeated. `concurrency`: how many may run
    at once (1 serialises); without it the agent's own limit counts. `queue`: how many more may wait for their turn, and
    `queue_wait`: how long ("0s": not at all), before they are refused as Overloaded (default: 50 ms, or as long as the handler
    takes, should that be longer; with `concurrency=1`: until their deadline). `priority="high"`: before others, and not held
    up by the agent's limit. `cache`: who asks with the same arguments within that time gets the same answer, and who asks
    meanwhile waits for it. `balance`: which of several replicas callers choose (docs/calls.md); `key`: the name of an
    argument: calls with the same value of it go to the same replica. `role`: only who calls with a key of that role, or an
    operator's, may (docs/security.md); others get Forbidden.

    An exception reaches the caller as HandlerError (a CallError such as NotFound as itself) and leaves the agent serving."""
    if priority not in PRIORITIES:
        raise ConfigError(at="@rpc(priority=)", got=priority, want=f"one of {', '.join(PRIORITIES)}")
    declared_s = None if timeout is None else seconds(timeout, at="@rpc(timeout=)")
    queue_wait_s = None if queue_wait is None else seconds(queue_wait, at="@rpc(queue_wait=)")
    cache_s = None if cache is None else seconds(cache, at="@rpc(cache=)")

    options = Rpc(
        timeout_s=DEFAULT_TIMEOUT_S if declared_s is None else declared_s,
        idempotent=idempotent,
        concurrency=concurrency,
        queue=queue,
        queue_wait_s=queue_wait_s,
        priority=priority,
        cache_s=cache_s,
        balance=balance,
        key=key,
        role=role,
    )

    def decorate(function: F) -> F:
        is_long = declared_s is None and inspect.isasyncgenfunction(function)
        return mark(replace(options, timeout_s=STREAM_TIMEOUT_S) if is_long else options)(function)

    return decorate(function) if function is not None else decorate


def every(interval: str | float, *, leader: str = "", slows: bool = True) -> Callable[[F], F]:
    """Run a method again and again, first one interval after `on_start`, never twice at once, late rather than in a burst.

    `async def` runs on the loop, plain `def` on a worker thread. Raising is logged and counted as a failed run; the next
    one comes as usual. Cancelled before `on_stop`. `leader`: only while this agent is the one leader of that name
    (`self.leader`), first one interval after it became that; an `async def`, because it is cancelled when another may lead.

    `slows`: while the agent sleeps it runs a tenth as often, but once a minute at least; False: as often as ever. It finds what
    `on_hibernate` has left of the agent; with `@keeps_awake` beside it, it wakes the agent instead. By itself it keeps no agent
    from sleeping (docs/hibernation.md)."""
    interval_s = seconds(interval, at="@every()")
    if interval_s <= 0:
        raise ConfigError(at="@every()", got=interval, want="more than 0 seconds")
    if not leader:
        return mark(Every(interval_s=interval_s, slows=slows))
    if not is_name(leader):
        raise ConfigError(at="@every(leader=)", got=leader, want="a letter, then letters, digits, _ . or -")

    def decorate(function: F) -> F:
        if not inspect.iscoroutinefunction(function):
            want = "an `async def`: a thread can't be cancelled when another leads"
            raise ConfigError(at="@every(leader=)", got=getattr(function, "__qualname__", function), want=want)
        return mark(Every(interval_s=interval_s, leader=leader, slows=slows))(function)

    return decorate


@overload
def health_check(function: F, /) -> F: ...
@overload
def health_check(*, interval: str | float | None = ..., timeout: str | float | None = ...) -> Callable[[F], F]: ...
def health_check(
    function: Any = None, /, *, interval: str | float | None = None, timeout: str | float | None = None
) -> Any:
    """A method that raises when something is wrong; its message is the reason that operators see.

    Runs before READY (all must pass once), then every `interval` (default: the fleet's `health_check.interval`, 10 s) with
    at most `timeout` (2 s). One failure degrades the agent, `retries` in a row (3) take it out of rotation."""
    options = HealthCheck(
        interval_s=None if interval is None else seconds(interval, at="@health_check(interval=)"),
        timeout_s=None if timeout is None else seconds(timeout, at="@health_check(timeout=)"),
    )
    return mark(options)(function) if function is not None else mark(options)


def mark(options: object) -> Callable[[F], F]:
    """What a decorator of ours returns: it hangs `options` on the function, for `marked` to find."""

    def hang(function: F) -> F:
        setattr(function, _MARK, options)
        return function

    return hang


def marked(cls: type, kind: type[Any]) -> list[tuple[str, Callable[..., Any], Any]]:
    """(name, function, options) of every method of `cls` that bears a mark of `kind`. An override must be marked again."""
    # Kept with the class, so that agents that are forked find what was looked for where the class was made: 0.1 ms for each of them
    marks: list[tuple[str, Callable[..., Any], Any]] | None = vars(cls).get(_MARKS)
    if marks is None:
        attributes: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            attributes |= vars(base)
        found = ((name, value, getattr(value, _MARK, None)) for name, value in attributes.items())
        marks = [(name, value, options) for name, value, options in found if options is not None and callable(value)]
        setattr(cls, _MARKS, marks)
    return [mark for mark in marks if isinstance(mark[2], kind)]
