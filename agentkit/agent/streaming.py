"""Calls with streams, as their caller has them: `async for` over results, an asynchronous iterator among the arguments.

Such a call is moved or tried again like any other as long as no value has passed; after that its end is the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from collections.abc import Coroutine as CoroutineBase
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

from agentkit.agent.course import Course
from agentkit.clock import now_s
from agentkit.errors import BadRequest, CallError, InternalError
from agentkit.observe.trace import TRACEPARENT, Span
from agentkit.transport.channel import Channel
from agentkit.transport.streams import CallStreams
from agentkit.wire import envelope as ak
from agentkit.wire.attachments import ContentPacker, Unsent, unpack
from agentkit.wire.values import Undecodable, Unsendable


class Source(NamedTuple):
    """The caller's own stream, and the parameter that it is for."""

    parameter: str
    values: AsyncIterator[Any]


def source_of(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Source | None]:
    """The arguments without the stream among them, and the stream. BadRequest when there are several."""
    streams = [name for name, value in arguments.items() if hasattr(value, "__aiter__")]
    if len(streams) > 1:
        raise BadRequest(f"{' and '.join(streams)} are streams: a call takes one")
    plain = dict(arguments)
    return plain, Source(streams[0], aiter(plain.pop(streams[0]))) if streams else None


class StreamingCall:
    """One call with a stream of results, of values, or both. Use it once, on the loop where it was made."""

    def __init__(
        self,
        what: str,
        course: Course,
        connect: Callable[[], Awaitable[Channel]],
        content: Unsent,
        *,
        takes: bool,
        source: Source | None,
        span: Span | None = None,
    ) -> None:
        """`connect`: chooses an instance and opens a channel to it, once for each try. `span`: ends with it."""
        self._what, self._course, self._connect, self._content = what, course, connect, content
        self._flags = (ak.TAKES_STREAM if takes else 0) | (ak.GIVES_STREAM if source else 0)
        self._source = source
        self._span = span
        self._loop = asyncio.get_running_loop()
        self._pack = ContentPacker().pack
        self._channel: Channel | None = None
        self._id = 0
        self._answer: asyncio.Future[Any] | None = None
        self._streams: CallStreams | None = None
        self._pump: asyncio.Task[None] | None = None
        self._has_given = False
        self._is_over = False

    # -- one result ---------------------------------------------------------------------------------------------------

    async def result(self) -> Any:
        """The one result of a method that takes a stream. What the stream raises is raised here, and ends the call."""
        try:
            while True:
                await self._open()
                assert self._answer is not None
                assert self._pump is not None
                await asyncio.wait((self._answer, self._pump), return_when=asyncio.FIRST_COMPLETED)
                if self._pump.done() and not self._answer.done():
                    self._pump.result()  # what the stream raised
                    await asyncio.wait((self._answer,))
                try:
                    result = self._answer.result()
                except CallError as error:
                    await self._again_or_raise(error)
                else:
                    self._course.answered()
                    self._end_span()
                    return result
        except CallError as error:
            self._end_span(error.code)
            raise
        finally:
            await self.aclose()

    # -- many results -------------------------------------------------------------------------------------------------

    async def next(self) -> Any:
        """The next result; StopAsyncIteration after the last. Cancelling this ends the call."""
        if self._is_over:
            raise StopAsyncIteration
        try:
            while True:
                if self._streams is None:
                    await self._open()
                assert self._streams is not None
                assert self._streams.incoming is not None
                try:
                    received = await self._streams.incoming.take()
                except CallError as error:
                    await self._again_or_raise(error)
                    self._streams = None
                    continue
                if received is None:
                    self._course.answered()
                    self._end_span()
                    await self.aclose()
                    raise StopAsyncIteration
                try:
                    return unpack(received.body, received.attachments)
                except Undecodable as exc:
                    raise InternalError(f"{self._what}: {exc}") from exc
        except StopAsyncIteration:
            raise
        except BaseException as exc:
            if isinstance(exc, CallError):
                self._end_span(exc.code)
                self._course.lost(exc)
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the call: the callee's handler is cancelled, the caller's own stream is closed."""
        if self._is_over:
            return
        self._is_over = True
        self._end_span("cancelled")  # unless it has ended otherwise
        if self._channel is not None and self._answer is not None and not self._answer.done():
            self._channel.cancel(self._id)
            self._course.dropped()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait((self._pump,))
            if not self._pump.cancelled():
                self._pump.exception()  # told already, or nobody waits for it
        if self._source is not None:
            close = getattr(self._source.values, "aclose", None)
            if close is not None:
                with suppress(RuntimeError):  # it runs in another task of the author's
                    await close()

    def _end_span(self, code: str = "ok") -> None:
        if self._span is not None:
            self._span.end(code)

    def drop(self) -> None:
        """Nobody reads it any more: like `aclose`, from wherever the garbage collector runs."""
        if not self._is_over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self.aclose(), name=f"close {self._what}"))

    # -- tries --------------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        while True:
            try:
                self._channel = await self._connect()
                body, attachments = self._content
                meta = {} if self._source is None else {ak.STREAM_KEY: self._source.parameter}
                if self._span is not None:
                    meta[TRACEPARENT] = self._span.traceparent
                self._streams = CallStreams(self._flags)
                self._id, self._answer = self._channel.request(
                    self._what.rpartition(".")[2], body, self._course.at_s, meta, attachments=attachments, streams=self._streams
                )  # fmt: skip
                break
            except CallError as error:
                await self._again_or_raise(error)
        if self._source is not None:
            self._pump = self._loop.create_task(self._give(self._streams, self._source), name=f"stream to {self._what}")

    async def _again_or_raise(self, error: CallError) -> None:
        """Waits until the call may be tried once more, or raises what it ends with."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait((self._pump,))
            self._pump = None
        has_taken = self._streams is not None and self._streams.incoming is not None and self._streams.incoming.has_come
        pause_s = None if has_taken or self._has_given else self._course.failed(error, now_s(), self._channel)
        if pause_s is None:
            raise error
        await asyncio.sleep(pause_s)

    async def _give(self, streams: CallStreams, source: Source) -> None:
        while True:
            try:
                await streams.room()
            except CallError:
                return  # the call has ended, which its answer tells
            self._has_given = True
            try:
                value = await anext(source.values)
                content = self._pack(value)
            except StopAsyncIteration:
                streams.finish()
                return
            except Unsendable as exc:
                self._fail(streams, BadRequest(f"{self._what}: {exc}"))
            except Exception as exc:  # noqa: BLE001 - whatever the author's stream raises; `_fail` raises it on
                self._fail(streams, exc)
            streams.write(*content)

    def _fail(self, streams: CallStreams, error: Exception) -> None:
        """The caller's own stream broke: the callee is told to stop, the caller gets to see it."""
        assert self._channel is not None
        self._channel.cancel(self._id)
        if streams.incoming is not None:
            streams.incoming.end(error)
        raise error


class Results:
    """What a streaming method yields: `async for result in ...`. Leaving the loop ends the call at once; `async with` and `aclose`
    do the same for a stream that is kept in a variable."""

    def __init__(self, begin: Callable[[], StreamingCall]) -> None:
        self._begin = begin
        self._call: StreamingCall | None = None

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> Any:
        if self._call is None:
            self._call = self._begin()
        return await self._call.next()

    async def aclose(self) -> None:
        """End the call; harmless when it has ended."""
        if self._call is not None:
            await self._call.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_call", None) is not None:
            self._call.drop()  # type: ignore[union-attr]


class PeerCall(CoroutineBase[Any, Any, Any]):
    """`peer.method(...)`: `await` it for a result, iterate over it with `async for` for a stream of them."""

    __slots__ = ("_await", "_awaited", "_stream")

    def __init__(self, call: Callable[[], CoroutineBase[Any, Any, Any]], stream: Callable[[], Results]) -> None:
        self._await, self._stream = call, stream
        self._awaited: CoroutineBase[Any, Any, Any] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._await().__await__()

    def __aiter__(self) -> Results:
        return self._stream()

    def send(self, value: Any) -> Any:
        """As a task runs it."""
        if self._awaited is None:
            self._awaited = self._await()
        return self._awaited.send(value)

    def throw(self, *error: Any) -> Any:
        """Likewise."""
        if self._awaited is None:
            self._awaited = self._await()
        return self._awaited.throw(*error)

    def close(self) -> None:
        """Likewise."""
        if self._awaited is not None:
            self._awaited.close()
