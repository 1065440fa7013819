"""`@subscribe`: methods that get events. Each has a bounded queue and runs one event after another, unless it says otherwise."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from agentkit.agent.decorators import mark, marked
from agentkit.clock import now_s
from agentkit.errors import ConfigError
from agentkit.events.delivery import Delivery
from agentkit.events.registry import Event, type_of
from agentkit.events.topics import Pattern
from agentkit.observe.log import get_logger

F = TypeVar("F", bound=Callable[..., Any])

log = get_logger("agentkit.events")

#: Events that may wait for one method; then new ones are thrown away, and counted as lost.
QUEUE: Final = 4_096
#: Events handled in one go by a method that never really waits, so that others get their turn.
_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """Options of `@subscribe`."""

    pattern: str
    concurrency: int = 1
    queue: int = QUEUE


def subscribe(pattern: str, *, concurrency: int = 1, queue: int = QUEUE) -> Callable[[F], F]:
    """Let a method have every event whose topic `pattern` means: `task.created`, `task.*` (one word), `task.>` (the rest).

    The method takes the event, or `(self, topic, event)`. Its annotation says what it gets, checked: a class of events (or
    several, `TaskCreated | TaskClosed`), `Event` for whatever the topic's class is, `dict` for plain data, `Delivery` for the
    event with topic, publisher and time. What does not fit is counted, reported and not delivered.

    `async def` runs on the event loop, plain `def` on a worker thread; one event after another in the order of arrival, or
    `concurrency` at once and in no order. `queue`: how many may wait, above that new ones are lost and counted. Raising is
    reported and does not stop the next. Events come from READY on until the agent is told to stop; what waits then is still
    handled, within the grace period."""
    Pattern(pattern, at="@subscribe()")
    for name, value in (("concurrency", concurrency), ("queue", queue)):
        if value < 1:
            raise ConfigError(at=f"@subscribe({name}=)", got=value, want="1 or more")
    return mark(Subscribe(pattern=pattern, concurrency=concurrency, queue=queue))


class Subscription:
    """One marked method of one running agent. `offer` is a sink of events.receiver."""

    def __init__(
        self,
        owner: object,
        name: str,
        function: Callable[..., Any],
        options: Subscribe,
        on_failed: Callable[[str, Exception], bool],
    ) -> None:
        """`on_failed` is told the method's name and what it raised, and says whether that deserves a line in the log.

        ConfigError: the method can't take events."""
        self.name = name
        self._shape = shape_of(function, options.pattern)
        self.pattern = self._shape.pattern
        self.active_s = 0.0  #: when it last had handled all that had come
        self.wake: Callable[[str], Awaitable[None]] | None = (
            None  #: set while the agent sleeps: waits until it is awake
        )
        self.failed = 0  #: events that the method raised for, or that did not fit its annotation
        self._owner = owner
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        self._options = options
        self._on_failed = on_failed
        self._waiting: deque[Delivery] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def offer(self, delivery: Delivery) -> bool:
        """Whether there was room for it."""
        if len(self._waiting) >= self._options.queue:
            return False
        self._waiting.append(delivery)
        if len(self._running) < self._options.concurrency:
            task = self._loop.create_task(self._work(), name=f"events:{self.name}")
            self._running.add(task)
        return True

    @property
    def running(self) -> int:
        """Runs of the method at this moment."""
        return len(self._running)

    async def finish(self, limit_s: float) -> None:
        """Wait until what has arrived is handled; what is left after `limit_s` is given up."""
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=limit_s)
        left = len(self._waiting)
        self._waiting.clear()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=0.1)
        if left:
            log.warning("events.given_up", method=self.name, events=left)

    async def _work(self) -> None:
        """One of up to `concurrency`: there only while there is something to do."""
        waiting, arguments, function, owner = self._waiting, self._shape.arguments, self._function, self._owner
        handled = 0
        try:
            while waiting:
                delivery = waiting.popleft()
                try:
                    if self.wake is not None:
                        await self.wake(f"event {delivery.topic}")
                    if self._is_async:
                        await function(owner, *arguments(delivery))
                    else:
                        await asyncio.to_thread(function, owner, *arguments(delivery))
                except (Exception, SystemExit) as exc:  # noqa: BLE001 - an author's; told, and the next event comes
                    self._note(
                        delivery, exc if isinstance(exc, Exception) else RuntimeError(f"raised SystemExit: {exc}")
                    )
                handled += 1
                if handled % _AT_ONCE == 0:
                    await asyncio.sleep(0)
        finally:  # here and not when the task is done, a turn later: what is offered in between would wait for the next
            task = asyncio.current_task()
            assert task is not None
            self._running.discard(task)
            self.active_s = now_s()

    def _note(self, delivery: Delivery, failure: Exception) -> None:
        self.failed += 1
        if self._on_failed(self.name, failure):
            log.error("event.failed", method=self.name, topic=delivery.topic, exc_info=failure)


class Shape:
    """What a method wants of a delivery."""

    def __init__(self, function: Callable[..., Any], pattern: Pattern) -> None:
        at = f"@subscribe {function.__qualname__}"
        self.pattern = pattern
        plain = _parameters(function)
        self._has_topic = len(plain) == 2
        try:
            hint = get_type_hints(function).get(plain[-1].name, Any)
        except Exception as exc:
            raise ConfigError(
                at=at, got=str(exc), want="annotations of types that exist at run time",
                fix="import them outside of `if TYPE_CHECKING`",
            ) from exc  # fmt: skip
        self._wants_delivery = hint is Delivery
        self._wants_plain = hint in (Any, dict, Mapping) or (get_origin(hint) is dict and not _values_of(hint))
        self.wants_any_event = hint is Event
        self._classes = _event_classes(hint)
        topics = [cls.event_topic for cls in self._classes if cls.event_topic is not None]
        strange = [topic for topic in topics if not pattern.matches(topic)]
        if strange:
            raise ConfigError(
                at=at, got=pattern.text, want=f"a pattern that means {strange[0]}",
                fix=f"its events are annotated as those of {strange[0]}",
            )  # fmt: skip
        self._by_topic: dict[str, Callable[[Any], Any]] = {}  #: bounded: only topics that have a type here
        special = self._wants_delivery or self._wants_plain or self.wants_any_event
        try:
            self._adapter: TypeAdapter[Any] | None = None if special else TypeAdapter(hint)
        except PydanticUserError as exc:
            want = "a class of events (agentkit.Event), Event, dict, Delivery, or another type that pydantic can check"
            raise ConfigError(at=at, got=hint, want=want) from exc

    def arguments(self, delivery: Delivery) -> tuple[Any, ...]:
        """For the method, without self. ValueError: what arrived does not fit."""
        event = self._event(delivery)
        return (delivery.topic, event) if self._has_topic else (event,)

    def _event(self, delivery: Delivery) -> Any:
        if self._wants_delivery:
            return delivery
        if self._wants_plain:
            return delivery.data
        try:
            return (self._by_topic.get(delivery.topic) or self._check_for(delivery.topic))(delivery.data)
        except ValidationError as exc:
            errors = exc.errors(include_url=False, include_context=False, include_input=False)
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors[:5])
            raise ValueError(f"{delivery.topic} from {delivery.publisher} does not fit: {wrong}") from exc

    def _check_for(self, topic: str) -> Callable[[Any], Any]:
        """What makes an event of plain data. Of several classes the topic's own is meant, whatever others it may look like."""
        model = type_of(topic)
        if model is not None and (self.wants_any_event or model in self._classes):
            check = self._by_topic[topic] = model.__pydantic_validator__.validate_python
            return check
        if self._adapter is None:
            raise ValueError(f"no type of event for topic {topic} here; import the class that has it")
        return self._adapter.validator.validate_python


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Those for an event, without self; ConfigError: it can't be called with one."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(plain) not in (1, 2) or len(plain) != len(parameters):
        raise ConfigError(
            at=f"@subscribe {function.__qualname__}",
            got=f"({', '.join(p.name for p in parameters)})",
            want="(self, event) or (self, topic, event)",
        )
    return plain


def check_subscribers(cls: type) -> None:
    """What shows without looking at annotations, which may not be there yet. ConfigError names the method."""
    for _, function, _ in marked(cls, Subscribe):
        _parameters(function)


def shape_of(function: Callable[..., Any], pattern: str) -> Shape:
    """ConfigError: the method can't take events, or none of those that `pattern` means."""
    return Shape(function, Pattern(pattern, at=f"@subscribe {function.__qualname__}"))


def _values_of(hint: Any) -> bool:
    """Whether a `dict[...]` says something that has to be checked."""
    arguments = get_args(hint)
    return bool(arguments) and arguments != (str, Any)


def _event_classes(hint: Any) -> tuple[type[Event], ...]:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(member for member in members if isinstance(member, type) and issubclass(member, Event))


def subscriptions_of(owner: object, on_failed: Callable[[str, Exception], bool]) -> list[Subscription]:
    """The `@subscribe` methods of an agent."""
    return [
        Subscription(owner, name, function, options, on_failed)
        for name, function, options in marked(type(owner), Subscribe)
    ]
