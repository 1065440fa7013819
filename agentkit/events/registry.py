"""Types of events: a pydantic model for each topic, known to the whole process.

    class TaskCreated(Event, topic="task.created"):
        id: int
        title: str

Publisher and subscribers import the same class, or each a copy of it: a subscriber ignores fields that its copy does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from agentkit.errors import BadRequest, ConfigError
from agentkit.events.topics import check_topic

_types: Final[dict[str, type[Event]]] = {}


class Event(BaseModel):
    """Base of all types of events. `class X(Event, topic="a.b")` makes X what is published as `a.b`; without a topic it is a
    base for others. ConfigError: no topic, or another class has it."""

    # always: an instance whose lists were changed after it was made is wrong all the same
    model_config = ConfigDict(frozen=True, revalidate_instances="always")

    event_topic: ClassVar[str | None] = None  #: what it is published as

    def __init_subclass__(cls, *, topic: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, topic: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.event_topic = topic
        if topic is None:
            return
        check_topic(topic, at=f"topic of {cls.__qualname__}")
        other = _types.get(topic)
        # the same class again is a module that was loaded twice: run by its file and imported by another
        if other is not None and other.__qualname__ != cls.__qualname__:
            raise ConfigError(
                at=f"topic of {cls.__module__}.{cls.__qualname__}",
                got=topic,
                want="a topic of its own",
                fix=f"{other.__module__}.{other.__qualname__} has it",
            )
        _types[topic] = cls


def type_of(topic: str) -> type[Event] | None:
    """What is published as `topic`, as far as this process has imported it."""
    return _types.get(topic)


def topics() -> tuple[str, ...]:
    """Those that have a type, as far as this process has imported them."""
    return tuple(_types)


def checked(topic: str, payload: object) -> Event:
    """`payload` (an instance, or a map of its fields) as the event that `topic` stands for.

    BadRequest: no type is known for the topic, or the payload does not fit it; the message names each wrong field."""
    model = _types.get(topic)
    if model is None:
        near = get_close_matches(topic, _types, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f'define `class ...(Event, topic="{topic}")` and import it here'
        )
        raise BadRequest(f"no type of event for topic {topic!r}; {hint}", details={"topic": topic})
    given: object = payload
    if isinstance(payload, BaseModel) and not isinstance(payload, model):
        if type(payload).__qualname__ != model.__qualname__:
            raise BadRequest(
                f"{topic}: a {type(payload).__name__} was given, its events are {model.__name__}",
                details={"topic": topic},
            )
        given = {name: getattr(payload, name) for name in type(payload).model_fields}
    try:
        event = model.__pydantic_validator__.validate_python(given)
    except ValidationError as exc:
        errors = exc.errors(include_url=False, include_context=False, include_input=False)
        raise _refused(topic, [(".".join(map(str, e["loc"])) or "event", e["msg"]) for e in errors]) from exc
    if isinstance(given, Mapping) and model.model_config.get("extra", "ignore") == "ignore":
        unknown = set(given) - _names(model)
        if unknown:
            raise _refused(topic, [(str(name), "there is no such field") for name in sorted(unknown, key=str)])
    return event  # type: ignore[no-any-return]


def _refused(topic: str, wrong: list[tuple[str, str]]) -> BadRequest:
    sentence = "; ".join(f"{name}: {problem}" for name, problem in wrong[:5])
    told = [{"field": name, "problem": problem} for name, problem in wrong[:20]]
    return BadRequest(f"{topic}: {sentence}", details={"topic": topic, "wrong": told})


def _names(model: type[BaseModel]) -> set[str]:
    """What a map may call the model's fields."""
    names = set(model.model_fields)
    for field in model.model_fields.values():
        names |= {alias for alias in (field.alias, field.validation_alias) if isinstance(alias, str)}
    return names
