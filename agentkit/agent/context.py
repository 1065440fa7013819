"""What a handler may ask about the call that it is serving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from agentkit.agent.handlers import Method
from agentkit.errors import CallError
from agentkit.observe.log import handling
from agentkit.observe.trace import Span, Tracer
from agentkit.resilience.admission import Gate
from agentkit.resilience.deadline import Deadline
from agentkit.transport.peer import Inbound


class Serving:
    """One request that runs or waits for its turn; what `current_call` holds in its handler, on the loop or a worker thread.

    One object per call instead of three (request, limits, context) saved 4 us of 33."""

    __slots__ = (
        "arguments",
        "at_s",
        "gate",
        "has_begun",
        "inbound",
        "is_over",
        "key",
        "leads",
        "method",
        "queued_s",
        "share",
        "span",
        "started_s",
        "task",
        "thread",
        "why_cancelled",
    )

    def __init__(self, key: int, inbound: Inbound, method: Method, arguments: dict[str, Any], at_s: float) -> None:
        self.key = key  #: its number in the dispatcher; request ids repeat over channels
        self.inbound = inbound
        self.method = method
        self.arguments = arguments
        self.at_s = at_s  #: its deadline on the monotonic clock
        self.started_s = 0.0
        self.gate: Gate[Serving] | None = None  #: before which it waits
        self.queued_s = 0.0  #: since when
        self.share: Any = None  #: sharing.Share, where another's run may answer it, or its run others
        self.span: Span | None = None  #: where its call is traced
        self.leads = False  #: its run is the one that answers them
        self.task: asyncio.Task[None] | None = None
        self.thread: asyncio.Future[Any] | None = None  #: of a plain `def`: done when its worker thread is free again
        self.has_begun = False
        self.is_over = False  #: the handler returned; what it left behind (a background task) has no deadline any more
        self.why_cancelled: CallError | None = None

    @property
    def deadline(self) -> Deadline:
        return Deadline(self.at_s)

    def __str__(self) -> str:
        """The task id of log lines."""
        return f"{self.inbound.peer.name or 'plain'}:{self.inbound.id}"


#: Unset outside of handlers.
current_call: Final[ContextVar[Serving | None]] = handling


def serving() -> Serving | None:
    """The call in whose name this code runs; None outside of handlers, and in tasks that outlived theirs."""
    call = current_call.get()
    return call if call is not None and not call.is_over else None


def at_end_of_call(then: Callable[[], None]) -> bool:
    """Have `then` called on the loop when the call in whose name this code runs has ended; False: there is none. On the loop."""
    call = serving()
    ending = None if call is None else call.thread or call.task
    if ending is None or ending.done():
        return False
    ending.add_done_callback(lambda _: then())
    return True


def span_of_call(tracer: Tracer, outer: Serving | None, target: str, method: str) -> Span | None:
    """That of a call which is made now: in the trace of the handler that makes it (`outer`), if that has one. Who calls outside
    of handlers begins a trace, where the lot says so."""
    if outer is None:
        return tracer.begin(f"{target}.{method}", "client") if tracer.draw() < tracer.sample else None
    return tracer.begin(f"{target}.{method}", "client", outer.span) if outer.span is not None else None
