"""A stream that a caller sends, as the handler gets it: an asynchronous iterator of checked values."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from agentkit.agent.handlers import Method
from agentkit.errors import BadRequest
from agentkit.transport.peer import Inbound
from agentkit.transport.streams import Incoming
from agentkit.wire import envelope as ak
from agentkit.wire.attachments import unpack
from agentkit.wire.values import Undecodable


def streamed_arguments(method: Method, inbound: Inbound) -> dict[str, Any]:
    """The stream that a request brings, as an argument; BadRequest where caller and method do not agree about streams."""
    wants, takes = method.stream_parameter, bool(inbound.flags & ak.TAKES_STREAM)
    if takes and not method.is_stream:
        raise BadRequest(f"{method.name} returns one result: `await` it")
    if method.is_stream and not takes:
        raise BadRequest(f"{method.name} yields its results: call it with `async for`, or `agentkit call --stream`")
    given = inbound.meta.get(ak.STREAM_KEY) if inbound.flags & ak.GIVES_STREAM else None
    if given != wants:
        if wants is None:
            raise BadRequest(f"{method.name} has no parameter that takes a stream")
        raise BadRequest(f"{method.name}: {wants} wants a stream: an asynchronous iterator")
    if wants is None or inbound.incoming is None:
        return {}
    return {wants: ReceivedStream(f"{method.name}: {wants}", inbound.incoming, method.element)}


class ReceivedStream:
    """A caller's stream, checked value by value; an asynchronous iterator. BadRequest for a value that is none."""

    def __init__(self, what: str, incoming: Incoming, element: TypeAdapter[Any]) -> None:
        self._what, self._incoming, self._element = what, incoming, element

    def __aiter__(self) -> ReceivedStream:
        return self

    async def __anext__(self) -> Any:
        received = await self._incoming.take()
        if received is None:
            raise StopAsyncIteration
        try:
            return self._element.validate_python(unpack(received.body, received.attachments))
        except (Undecodable, ValidationError) as exc:
            raise BadRequest(f"{self._what}: {exc}") from exc
