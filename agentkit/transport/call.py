"""One call on its way, as the channel that carries it knows it: what is sent, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

from agentkit.errors import CallError
from agentkit.transport.batch import Part
from agentkit.transport.streams import CallStreams
from agentkit.wire import codec, shared
from agentkit.wire import envelope as ak
from agentkit.wire.attachments import Unsent


class Call:
    """Its future ends with the plain result or a CallError, once; an end that comes after its caller has gone is dropped."""

    __slots__ = ("content", "future", "idempotent", "meta", "method", "streams")

    def __init__(
        self,
        method: str,
        content: Unsent,
        meta: ak.Meta,
        future: asyncio.Future[Any],
        idempotent: bool,
        streams: CallStreams | None,
    ) -> None:
        self.method, self.content, self.meta, self.future, self.idempotent = method, content, meta, future, idempotent
        self.streams = streams

    def begin(self, id: int, budget_ms: int, limits: ak.Limits, *, may_share: bool) -> Part:
        """The REQUEST that begins it at a peer of such `limits`."""
        body, attached = self.content
        if attached:
            attached = shared.frames_for(attached, may_share=may_share)
        flags = 0
        if self.streams is not None:
            flags = self.streams.flags
            self.streams.begin(limits.stream_bytes)
        return codec.request_fields(id, self.method, budget_ms, self.meta, flags), body, attached  # type: ignore[return-value]

    def fail(self, error: CallError) -> None:
        """It ends by `error`."""
        if not self.future.done():
            self.future.set_exception(error)

    def lose(self, error: CallError) -> None:
        """The channel ended by `error`, which others of its calls get too: one exception object each, since they gather tracebacks.
        An idempotent method may be run again."""
        self.fail(type(error)(error.message, retry_safe=error.retry_safe or self.idempotent, details=error.details))
