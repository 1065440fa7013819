"""What is wrong with a class that only shows when something of it is used: for whoever checks classes before a fleet starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentkit.agent.decorators import marked
from agentkit.agent.subscriptions import Subscribe, shape_of
from agentkit.errors import ConfigError
from agentkit.events.registry import Event, topics

if TYPE_CHECKING:
    from agentkit.agent.base import BaseAgent


def remarks_on(cls: type[BaseAgent]) -> tuple[list[str], list[str]]:
    """(what keeps an agent of this class from starting, what will fail when it is used), a line each, with its place."""
    faults, doubts = [], []
    for _, function, options in marked(cls, Subscribe):
        try:
            shape = shape_of(function, options.pattern)
        except ConfigError as exc:
            faults.append(f"{_place(function)}: {exc}")
            continue
        if shape.wants_any_event and not any(shape.pattern.matches(topic) for topic in topics()):
            doubts.append(
                f"{_place(function)}: @subscribe {function.__qualname__}: no type of event whose topic {shape.pattern.text} means "
                f"is imported here, so that nothing can be delivered as {Event.__name__}"
            )
    for method in cls.methods.values():
        try:
            _ = method.arguments, method.result, method.stream_parameter and method.element
        except Exception as exc:  # noqa: BLE001 - whatever an author's types raise is what is told
            doubts.append(
                f"{_place(method.function)}: @rpc {method.function.__qualname__}: {' '.join(str(exc).split())[:200]}"
            )
    return faults, doubts


def _place(function: Callable[..., Any]) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
