"""What a marked method becomes: a Method, which checks arguments and says what it is like.

Arguments and results are checked from the annotations (pydantic). Schemas are built on first use of a method, not when the
class is defined: a process of a fleet pays only for the methods that somebody calls."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, NotRequired, Required, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from agentkit.agent.decorators import Rpc, marked
from agentkit.errors import BadRequest, ConfigError


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
        self.is_control = options.priority == "control"  #: a question about the agent, not for it

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
