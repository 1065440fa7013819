"""What authors mark their methods with, and what a marked method becomes: a Method that checks arguments and runs.

Arguments and results are checked from the annotations (pydantic). Schemas are built on first use of a method, not when the
class is defined: a process of a fleet pays only for the methods that somebody calls."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Final, NotRequired, Required, TypeVar, get_args, get_origin, get_type_hints, overload

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from agentkit.errors import BadRequest, ConfigError
from agentkit.names import is_name
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S
from agentkit.resilience.policy import PRIORITIES, Balance, Priority, checked_balance
from agentkit.units import seconds

F = TypeVar("F", bound=Callable[..., Any])

#: What a call of a method that yields gets when nobody says anything, in seconds: it covers the whole stream.
STREAM_TIMEOUT_S: Final = 60.0

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


def every(interval: str | float) -> Callable[[F], F]:
    """Run a method again and again, first one interval after `on_start`, never twice at once, late rather than in a burst.

    `async def` runs on the loop, plain `def` on a worker thread. Raising is logged and counted as a failed run; the next
    one comes as usual. Cancelled before `on_stop`."""
    interval_s = seconds(interval, at="@every()")
    if interval_s <= 0:
        raise ConfigError(at="@every()", got=interval, want="more than 0 seconds")
    return mark(Every(interval_s=interval_s))


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


class WrongResult(TypeError):
    """A handler returned something else than its annotation says."""


class Method:
    """One `@rpc` method of one class."""

    def __init__(self, name: str, function: Callable[..., Any], options: Rpc) -> None:
        self.name = name
        self.function = function
        self.is_stream = inspect.isasyncgenfunction(function)  #: it yields its results one after another
        self.is_async = self.is_stream or inspect.iscoroutinefunction(function)
        self.parameters = list(inspect.signature(function).parameters.values())[1:]  # without self
        wrong = [p.name for p in self.parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)]
        if wrong:
            raise ConfigError(
                at=f"@rpc {function.__qualname__}",
                got=", ".join(wrong),
                want="named parameters",
                fix="callers pass arguments by name",
            )
        if inspect.isgeneratorfunction(function):
            raise ConfigError(
                at=f"@rpc {function.__qualname__}",
                got="a generator that blocks",
                want="a function with one result, or `async def` with `yield`",
                fix="return a list, or make it an asynchronous generator",
            )
        self.names = frozenset(p.name for p in self.parameters)
        self._take(options)

    def _take(self, options: Rpc) -> None:
        """ConfigError: they are not for this method."""
        if options.cache_s is not None and self.is_stream:
            raise ConfigError(
                at=f"@rpc(cache=) of {self.function.__qualname__}", got="a method that yields", want="one result"
            )
        if options.key and options.key not in self.names:
            raise ConfigError(
                at=f"@rpc(key=) of {self.function.__qualname__}",
                got=options.key,
                want=f"one of its arguments: {', '.join(sorted(self.names)) or 'it has none'}",
            )
        self.options = options
        self.is_urgent = options.priority == "high"

    def under(self, said: Mapping[str, Any]) -> Method:
        """This method as the fleet file wants it: other options of Rpc (`cache_s` 0: none). Schemas that were made are kept.

        ConfigError: it can't be so."""
        values = dict(said)
        if values.get("cache_s") == 0:
            values["cache_s"] = None
        if values.get("balance", "hash") != "hash":
            values.setdefault("key", "")  # what the class says of `hash` does not count then
        other = copy(self)
        try:
            other._take(replace(self.options, **values))
        except TypeError as exc:
            raise ConfigError(at=self.name, got=dict(said), want="options of @rpc", fix=str(exc)) from exc
        return other

    @cached_property
    def hints(self) -> Mapping[str, Any]:
        """The annotations, resolved; ConfigError names the one that can't be."""
        try:
            return get_type_hints(self.function, include_extras=True)
        except Exception as exc:
            raise ConfigError(
                at=f"annotations of {self.function.__qualname__}", got=str(exc), want="types that exist at run time",
                fix="import them outside of `if TYPE_CHECKING`",
            ) from exc  # fmt: skip

    @cached_property
    def stream_parameter(self) -> str | None:
        """The parameter that takes a stream of the caller's: the one that is annotated `AsyncIterator[...]`."""
        names = [p.name for p in self.parameters if element_of(self.hints.get(p.name)) is not None]
        if len(names) > 1:
            raise ConfigError(
                at=f"@rpc {self.function.__qualname__}", got=" and ".join(names), want="one AsyncIterator parameter at most",
                fix="merge the streams, or make two methods",
            )  # fmt: skip
        return names[0] if names else None

    @cached_property
    def element(self) -> TypeAdapter[Any]:
        """Checks a value of the caller's stream."""
        assert self.stream_parameter is not None
        return _adapter(element_of(self.hints[self.stream_parameter]))

    @cached_property
    def _returns(self) -> Any:
        """The annotation of the result, or of each value of a stream."""
        hint = self.hints.get("return", Any)
        return element_of(hint) or Any if self.is_stream else hint

    @cached_property
    def arguments(self) -> TypeAdapter[Any]:
        """Checks a map of arguments."""
        fields: dict[str, Any] = {}
        for p in self.parameters:
            if p.name == self.stream_parameter:
                continue
            hint = self.hints.get(p.name, Any)
            fields[p.name] = Required[hint] if p.default is p.empty else NotRequired[hint]
        shape = TypedDict(f"{self.name}_arguments", fields)  # type: ignore[misc]
        return TypeAdapter(with_config(ConfigDict(extra="forbid", arbitrary_types_allowed=True))(shape))

    @cached_property
    def result(self) -> TypeAdapter[Any] | None:
        """Checks a result; None where the method does not say what it returns."""
        hint = self._returns
        return None if hint is Any else _adapter(hint)

    @cached_property
    def _validate(self) -> Callable[[object], dict[str, Any]]:
        return self.arguments.validator.validate_python  # past TypeAdapter's Python layer: 0.9 us less a call

    @cached_property
    def _exact(self) -> type | None:
        """The result's type where a value of exactly that type needs no check and no conversion."""
        hint = self._returns
        return hint if hint in (str, bytes, int, float, bool, type(None)) else None

    def prepare(self) -> None:
        """Make now what the first call would make. What can't be made is for that call to tell."""
        with suppress(PydanticUserError, ConfigError):
            _ = self._validate, self._exact, self.result

    def check(self, arguments: object) -> dict[str, Any]:
        """The arguments as the annotations want them; BadRequest names each one that is wrong."""
        if not self.parameters and arguments == {}:
            return {}
        try:
            return self._validate(arguments)
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_context=False, include_input=False)
            wrong = [{"argument": ".".join(map(str, e["loc"])) or "arguments", "problem": e["msg"]} for e in errors]
            sentence = "; ".join(f"{w['argument']}: {w['problem']}" for w in wrong[:5])
            raise BadRequest(f"{self.name}: {sentence}", details={"method": self.name, "wrong": wrong[:20]}) from exc

    def plain_result(self, value: Any) -> Any:
        """The result as plain data, checked against the annotation; WrongResult when the method broke its promise."""
        if type(value) is self._exact:
            return value
        adapter = self.result
        if adapter is None:
            return value
        try:
            return adapter.dump_python(adapter.validate_python(value), by_alias=True)
        except ValidationError as exc:
            raise WrongResult(f"{self.name} returned what its annotation does not promise: {exc}") from exc

    def describe(self) -> dict[str, Any]:
        """For `describe`: documentation, JSON Schemas, options."""
        return {
            "doc": inspect.getdoc(self.function) or "",
            "arguments": _schema(lambda: self.arguments.json_schema()),
            "result": _schema(lambda: {} if self.result is None else self.result.json_schema(mode="serialization")),
            "streams": self.is_stream,
            "takes_stream": self.stream_parameter,
            **asdict(self.options),
        }

    def traits(self) -> dict[str, Any]:
        """What callers are told through the directory, beside the deadline; nothing for a method like most."""
        options = self.options
        told = {"idempotent": options.idempotent, "balance": options.balance, "key": options.key}
        return {name: value for name, value in told.items() if value}


def element_of(hint: Any) -> Any:
    """What an `AsyncIterator[...]` (AsyncGenerator, AsyncIterable) yields; None for any other annotation."""
    origin = get_origin(hint) or hint
    if origin not in (AsyncIterator, AsyncGenerator, AsyncIterable):
        return None
    arguments = get_args(hint)
    return arguments[0] if arguments else Any


def _adapter(hint: Any) -> TypeAdapter[Any]:
    """Arrays and other types that pydantic does not know are checked by isinstance."""
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as exc:
        if exc.code != "type-adapter-config-unused":  # models and dataclasses have their own
            raise
        return TypeAdapter(hint)


def _schema(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One method whose types have no schema must not keep an agent from being described."""
    try:
        return make()
    except (PydanticUserError, ConfigError) as exc:
        return {"description": f"no JSON Schema: {str(exc).splitlines()[0]}"}


def methods_of(cls: type) -> dict[str, Method]:
    """The `@rpc` methods of a class, its bases' included."""
    return {name: Method(name, function, options) for name, function, options in marked(cls, Rpc)}


def traits_of(methods: Mapping[str, Method]) -> dict[str, dict[str, Any]]:
    """AgentRecord.traits of an agent with these methods."""
    return {name: traits for name, method in methods.items() if (traits := method.traits())}


def marked(cls: type, kind: type[Any]) -> list[tuple[str, Callable[..., Any], Any]]:
    """(name, function, options) of every method of `cls` that bears a mark of `kind`. An override must be marked again."""
    attributes: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        attributes |= vars(base)
    marks = ((name, value, getattr(value, _MARK, None)) for name, value in attributes.items())
    return [(name, value, options) for name, value, options in marks if isinstance(options, kind) and callable(value)]
