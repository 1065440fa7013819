"""The two ends of one stream of values inside a call. The reader says how many bytes it has used (CREDIT), the writer stops when it has
none left: so a slow reader holds its writer back, and nobody keeps more of a stream than `stream_bytes` and one value."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from agentkit.errors import CallCancelled
from agentkit.transport.batch import Part
from agentkit.wire import codec
from agentkit.wire import envelope as ak
from agentkit.wire.flat import Buffer

#: What a value counts beside its bytes, so that a stream of empty values is bounded too.
OVERHEAD_BYTES: Final = 64


class Received(NamedTuple):
    """One value as it came, still packed."""

    body: bytes
    attachments: Sequence[Buffer]

    @classmethod
    def of(cls, content: Sequence[Any]) -> Received:
        """From the frames behind the header; without any it is None."""
        return cls(content[0], content[1:]) if content and content[0] is not None else cls(b"\xc0", ())

    @property
    def size(self) -> int:
        return size_of(self.body, self.attachments)


def size_of(body: bytes, attachments: Sequence[Buffer] = ()) -> int:
    """What a value costs of the credit."""
    return OVERHEAD_BYTES + len(body) + sum(map(len, attachments))


class StreamBroken(Exception):
    """What came is no continuation of the stream: a gap, or more than was allowed."""


class Window:
    """The writing end's credit. Belongs to the running loop."""

    def __init__(self, credit: int) -> None:
        self._left = credit
        self._seq = 0
        self._waiter: asyncio.Future[None] | None = None
        self._end: BaseException | None = None

    async def room(self) -> None:
        """Wait until something may be sent; raises what the stream was ended by."""
        while self._left <= 0 and self._end is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._end is not None:
            raise self._end

    def spend(self, size: int) -> int:
        """A value of `size` is sent; its number."""
        self._left -= size
        seq = self._seq
        self._seq = seq + 1
        return seq

    def grant(self, n: int) -> None:
        """The reader has used `n` bytes."""
        self._left += n
        self._wake()

    def end(self, error: BaseException) -> None:
        """Nobody reads any more: who waits for room gets `error`."""
        self._end = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Incoming:
    """The reading end. Belongs to the running loop."""

    def __init__(self, credit: int, grant: Callable[[int], None]) -> None:
        """`grant` tells the writer how many bytes were used; called once for many small values."""
        self._credit = credit
        self._grant = grant
        self._waiting: deque[Received] = deque()
        self._unread = 0  # bytes that wait here
        self._used = 0  # bytes read and not granted yet
        self._next_seq = 0
        self._waiter: asyncio.Future[None] | None = None
        self._is_ended = False
        self._error: BaseException | None = None

    @property
    def has_come(self) -> bool:
        """Whether any value ever came."""
        return self._next_seq > 0

    def put(self, seq: int, value: Received) -> None:
        """What came. StreamBroken when it is not what has to come."""
        if self._is_ended:
            return
        if seq != self._next_seq:
            raise StreamBroken(f"value {seq} came, value {self._next_seq} was expected")
        if self._unread + self._used >= self._credit:
            raise StreamBroken("more was sent than there was credit for")
        self._next_seq = seq + 1
        self._unread += value.size
        self._waiting.append(value)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come. What came before is still read, then `error` is raised."""
        if not self._is_ended:
            self._is_ended, self._error = True, error
            self._wake()

    async def take(self) -> Received | None:
        """The next value; None at the end of a complete stream. Raises what the stream was ended by."""
        while not self._waiting:
            if self._is_ended:
                if self._error is not None:
                    raise self._error
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        value = self._waiting.popleft()
        size = value.size
        self._unread -= size
        self._used += size
        # Half a window at a time: one CREDIT for thousands of small values, and the writer never waits for a reader that keeps up
        if self._used * 2 >= self._credit and not self._is_ended:
            self._grant(self._used)
            self._used = 0
        return value

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class CallStreams:
    """The streams of one call as its caller has them: values that come, values that go. Ends with the call."""

    def __init__(self, flags: int) -> None:
        """`flags`: of the request, ak.TAKES_STREAM and ak.GIVES_STREAM. Of no use before `attach`."""
        self.flags = flags
        self.incoming: Incoming | None = None
        self._window = Window(0) if flags & ak.GIVES_STREAM else None

    def attach(self, id: int, credit: int, send: Callable[[Part], None]) -> None:
        """To the call that was begun as `id` on a channel that buffers `credit` bytes."""
        self._id, self._send = id, send
        if self.flags & ak.TAKES_STREAM:
            self.incoming = Incoming(credit, self._grant)

    def begin(self, credit: int) -> None:
        """The request leaves, to a callee that buffers `credit` bytes."""
        if self._window is not None:
            self._window.grant(credit)

    async def room(self) -> None:
        """Wait until the request has left and its callee has room for a value. Raises what ended the call."""
        assert self._window is not None
        await self._window.room()

    def write(self, body: bytes, attachments: Sequence[Buffer] = ()) -> None:
        """Send a value; after `room`."""
        assert self._window is not None
        seq = self._window.spend(size_of(body, attachments))
        self._send((codec.chunk_fields(self._id, seq), body, attachments))

    def finish(self) -> None:
        """All values were written."""
        self._send((codec.end_fields(self._id), None, ()))

    def granted(self, n: int) -> None:
        if self._window is not None:
            self._window.grant(n)

    def received(self, seq: int, value: Received) -> None:
        """StreamBroken when it is not what has to come."""
        if self.incoming is None:
            raise StreamBroken("a stream came that nobody asked for")
        self.incoming.put(seq, value)

    def ended(self, answer: asyncio.Future[Any]) -> None:
        """The call has ended; a done callback of its future."""
        error = CallCancelled("the call was cancelled") if answer.cancelled() else answer.exception()
        if self.incoming is not None:
            self.incoming.end(error)
        if self._window is not None:
            self._window.end(error or CallCancelled("the call was answered before its stream had ended"))

    def _grant(self, n: int) -> None:
        self._send((codec.credit_fields(self._id, n), None, ()))
