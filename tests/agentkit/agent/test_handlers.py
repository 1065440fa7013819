"""Marks, and what a marked method becomes: arguments checked, results plain, described."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import typing
import uuid
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pytest
from pydantic import BaseModel, Field

from agentkit import BaseAgent, every, health_check, rpc
from agentkit.agent.decorators import Every, HealthCheck, Rpc, marked
from agentkit.agent.handlers import Method, WrongResult, methods_of
from agentkit.errors import BadRequest, ConfigError
from agentkit.wire import values

if TYPE_CHECKING:
    from decimal import Context


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    colour: Colour | None = None


class Box(BaseModel):
    name: str
    points: list[Point] = []
    made: dt.datetime | None = None


class Aliased(BaseModel):
    the_id: int = Field(alias="id")


class Pair(NamedTuple):
    left: int
    right: str


def method(function: Any, **options: Any) -> Method:
    return Method(function.__name__, function, Rpc(**options))


NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Point, Point(1, Colour.RED)),
        (Box, Box(name="b", points=[Point(2)], made=NOON)),
        (Aliased, Aliased(id=4)),
        (Pair, Pair(1, "r")),
        (dt.datetime, NOON),
        (dt.date, dt.date(2026, 1, 2)),
        (dt.time, dt.time(3, 4)),
        (dt.timedelta, dt.timedelta(seconds=90)),
        (uuid.UUID, uuid.UUID(int=7)),
        (Decimal, Decimal("1.10")),
        (Path, Path("/a/b")),
        (bytes, b"\x00\xff"),
        (Colour, Colour.RED),
        (int | None, None),
        (list[Point], [Point(1), Point(2, Colour.RED)]),
        (dict[str, Box], {"a": Box(name="b")}),
        (dict[int, str], {1: "a"}),
        (dict[uuid.UUID, Point], {uuid.UUID(int=1): Point(1)}),
        (set[Colour], {Colour.RED}),
        (tuple[int, str], (1, "a")),
        (Literal["a", "b"], "b"),
        (Annotated[int, Field(ge=3)], 4),
        (Any, {"any": [1, None]}),
    ],
)
def test_a_value_travels_to_a_handler_and_back(hint: Any, value: Any) -> None:
    def handler(self: object, given: Any) -> Any: ...

    handler.__annotations__ = {"given": hint, "return": hint}
    m = method(handler)
    arguments = m.check(values.unpack(values.pack({"given": value})))
    assert arguments == {"given": value}
    assert type(arguments["given"]) is type(value)
    back = values.unpack(values.pack(m.plain_result(value)))
    assert m.check({"given": back}) == {"given": value}


def test_wrong_arguments_are_named_each() -> None:
    def handler(self: object, text: str, count: int = 1) -> None: ...

    m = method(handler)
    with pytest.raises(BadRequest) as caught:
        m.check({"count": "many", "txt": "x"})
    wrong = {w["argument"] for w in caught.value.details["wrong"]}
    assert wrong == {"text", "count", "txt"}
    assert "handler: " in caught.value.message
    assert "count: Input should be a valid integer" in caught.value.message


@pytest.mark.parametrize("arguments", [None, [], "x", 5, {1: 2}, {b"text": 1}])
def test_arguments_that_are_no_map_of_names_are_a_bad_request(arguments: Any) -> None:
    def handler(self: object, text: str) -> None: ...

    with pytest.raises(BadRequest):
        method(handler).check(arguments)


def test_a_method_without_parameters_takes_none() -> None:
    def handler(self: object) -> None: ...

    assert method(handler).check({}) == {}
    with pytest.raises(BadRequest, match="extra"):
        method(handler).check({"extra": 1})


def test_parameters_without_annotation_take_anything_and_defaults_stay_the_functions_own() -> None:
    def handler(self: object, a, b=object()) -> None: ...  # type: ignore[no-untyped-def]  # noqa: B008

    assert method(handler).check({"a": {"x": 1}}) == {"a": {"x": 1}}


def test_a_result_that_breaks_its_promise_is_wrong() -> None:
    def handler(self: object) -> list[int]: ...

    assert method(handler).plain_result([1, 2]) == [1, 2]
    with pytest.raises(WrongResult, match="handler returned what its annotation does not promise"):
        method(handler).plain_result(["a"])


@pytest.mark.parametrize("hint", [str, int, float, bool, bytes, None])
def test_a_scalar_result_is_checked_too(hint: Any) -> None:
    def handler(self: object) -> Any: ...

    handler.__annotations__ = {"return": hint}
    with pytest.raises(WrongResult):
        method(handler).plain_result([object()])


def test_generators_and_unnamed_parameters_are_refused_where_they_are_defined() -> None:
    def yields(self: object) -> typing.Iterator[int]:
        yield 1

    def items(self: object, *names: str) -> None: ...
    def options(self: object, **names: str) -> None: ...
    def positional(self: object, name: str, /) -> None: ...

    with pytest.raises(ConfigError, match="a generator that blocks"):
        method(yields)
    for function in (items, options, positional):
        with pytest.raises(ConfigError, match="named parameters"):
            method(function)


def test_an_annotation_that_does_not_exist_at_run_time_is_named() -> None:
    def handler(self: object, context: Context) -> None: ...

    with pytest.raises(ConfigError, match=r"annotations of .*handler.*Context.*TYPE_CHECKING"):
        method(handler).check({"context": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: rpc(queue=3),
        lambda: rpc(concurrency=2, queue=-1),
        lambda: rpc(queue_wait="soon"),
        lambda: rpc(priority="control"),
        lambda: rpc(balance="hash"),
        lambda: rpc(key="user"),
        lambda: rpc(balance="best"),
        lambda: rpc(concurrency=0),
        lambda: rpc(timeout="fast"),
        lambda: every("0s"),
        lambda: every("often"),
    ],
)
def test_wrong_options_are_refused_where_they_are_written(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_marks_are_found_in_bases_and_an_override_must_be_marked_again() -> None:
    class Base(BaseAgent):
        @rpc(timeout="2s", idempotent=True, concurrency=3)
        def a(self) -> None: ...
        @rpc
        def b(self) -> None: ...
        @every("1m")
        async def c(self) -> None: ...
        @health_check(interval="5s", timeout=1)
        def d(self) -> None: ...

    class Child(Base):
        def b(self) -> None: ...
        @rpc
        def e(self) -> None: ...

    assert set(Child.methods) == set(methods_of(Child)) == {"a", "e"}
    assert Child.methods["a"].options == Rpc(timeout_s=2.0, idempotent=True, concurrency=3)
    assert [(name, options) for name, _, options in marked(Child, Every)] == [("c", Every(interval_s=60.0))]
    assert [(name, options) for name, _, options in marked(Child, HealthCheck)] == [
        ("d", HealthCheck(interval_s=5.0, timeout_s=1.0))
    ]


def test_a_method_is_described_with_schemas() -> None:
    def handler(self: object, box: Box, count: int = 1) -> list[Point]:
        """Puts it away."""
        return []

    told = method(handler, timeout_s=9.0, idempotent=True).describe()
    assert told["doc"] == "Puts it away."
    assert told["arguments"]["required"] == ["box"]
    assert told["arguments"]["properties"]["count"]["type"] == "integer"
    assert told["result"]["type"] == "array"
    assert (told["timeout_s"], told["idempotent"], told["concurrency"]) == (9.0, True, None)


class Odd:
    pass


def test_a_type_without_a_schema_does_not_keep_the_others_from_being_described() -> None:
    def handler(self: object, odd: Odd) -> Odd: ...

    told = method(handler).describe()
    assert "no JSON Schema" in told["arguments"]["description"]
    assert "no JSON Schema" in told["result"]["description"]
