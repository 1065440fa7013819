from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from agentkit import BadRequest, ConfigError, Event
from agentkit.events.registry import checked, type_of


class Made(Event, topic="test-registry.made"):
    id: int
    tags: list[str] = []


def test_an_event_is_known_by_its_topic() -> None:
    assert type_of("test-registry.made") is Made
    assert Made.event_topic == "test-registry.made"
    assert checked("test-registry.made", Made(id=1)) == checked("test-registry.made", {"id": 1}) == Made(id=1)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({}, "id"),
        ({"id": "x"}, "id"),
        ({"id": 1, "tags": ["a", 2]}, "tags.1"),
        ({"id": 1, "colour": "red"}, "colour"),
        (None, "event"),
        ([1], "event"),
    ],
)
def test_a_wrong_payload_is_refused_and_the_field_named(payload: object, field: str) -> None:
    with pytest.raises(BadRequest, match=rf"test-registry\.made: {field}") as refused:
        checked("test-registry.made", payload)
    assert refused.value.details["wrong"][0]["field"] == field


def test_an_instance_that_was_spoilt_after_it_was_made_is_refused() -> None:
    event = Made(id=1, tags=["a"])
    event.tags.append(3)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"tags\.1"):
        checked("test-registry.made", event)


def test_another_class_than_the_topics_is_refused() -> None:
    class Other(BaseModel):
        id: int

    with pytest.raises(BadRequest, match="a Other was given, its events are Made"):
        checked("test-registry.made", Other(id=1))


def test_a_topic_without_a_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"did you mean 'test-registry\.made'"):
        checked("test-registry.maid", {"id": 1})
    with pytest.raises(BadRequest, match=r'define `class \.\.\.\(Event, topic="quite.something.else"\)`'):
        checked("quite.something.else", {})


def define(name: str, topic: str) -> Any:
    """A class as a module makes it each time it is loaded."""
    return type(Event)(
        name, (Event,), {"__module__": "m", "__qualname__": name, "__annotations__": {"id": int}}, topic=topic
    )


def test_a_topic_belongs_to_one_class_and_a_module_loaded_twice_is_no_second() -> None:
    define("Once", "test-registry.once")
    again = define("Once", "test-registry.once")
    assert type_of("test-registry.once") is again
    with pytest.raises(ConfigError, match=r"m\.Once has it"):
        define("Twice", "test-registry.once")


def test_the_same_class_of_another_copy_of_its_module_is_taken() -> None:
    first = define("Copied", "test-registry.copied")
    second = define("Copied", "test-registry.copied")
    assert checked("test-registry.copied", first(id=3)) == second(id=3)


def test_a_name_that_is_no_topic_is_refused_where_the_class_is_defined() -> None:
    with pytest.raises(ConfigError, match=r"topic of .*Wrong"):

        class Wrong(Event, topic="task.*"):
            pass


def test_a_base_without_a_topic_passes_none_on() -> None:
    class Base(Event):
        at: int = 0

    class Child(Base, topic="test-registry.child"):
        pass

    class Grandchild(Child):
        pass

    assert (Base.event_topic, Grandchild.event_topic) == (None, None)
    assert type_of("test-registry.child") is Child
