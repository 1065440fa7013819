"""A channel for one blocking thread: one DEALER, one connection, one call at a time. The rules are channel.py's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

import zmq

from agentkit.clock import now_s
from agentkit.errors import (
    CallError,
    DeadlineExceeded,
    Draining,
    InternalError,
    PeerLost,
    Unreachable,
    from_wire,
)
from agentkit.names import Incarnation
from agentkit.resilience.deadline import Deadline
from agentkit.transport import dealer, frames
from agentkit.transport.monitor import LOST, REFUSED, event_of, watched
from agentkit.transport.peer import Identity
from agentkit.transport.streams import size_of
from agentkit.wire import codec, shared, values
from agentkit.wire import envelope as ak
from agentkit.wire.attachments import too_large, unpack
from agentkit.wire.envelope import READS_ONLY_IN_CALLS, Limits
from agentkit.wire.flat import Buffer

#: What a stream yields when nothing came for a while.
QUIET: Final = object()


class BlockingChannel:
    """Calls to one life of one agent, from the thread that made it."""

    def __init__(
        self,
        label: str,
        endpoint: str,
        me: Identity,
        *,
        expected: Incarnation = Incarnation(0),
        limits: Limits = Limits(),
        dial: dealer.Dial | None = None,
    ) -> None:
        self.label = label
        self.endpoint = endpoint
        self.expected = expected
        self.peer: ak.Welcome | None = None
        self.is_usable = True
        self.is_in_use = False  #: its owner's: a call is under way
        self.heard_s = now_s()  #: when the peer last said anything
        self._is_connected = False
        self.dial = dial
        self._limits = limits
        self._next_id = 1
        self._sent_s = 0.0  #: when the last request left
        self._pack = values.Packer().pack
        self._sock = dealer.opened(limits, dial)
        self._ears = watched(self._sock, int(LOST | REFUSED | zmq.EVENT_CONNECTED))
        self._both = (self._sock, self._ears)
        self._sock.connect(endpoint)
        hello = codec.encode(me.hello(expected, limits, (READS_ONLY_IN_CALLS, *shared.capability())))
        with contextlib.suppress(
            zmq.Again
        ):  # refused before it could leave: the monitor has that word for whoever calls
            frames.send(self._sock, [hello])

    def request(
        self,
        method: str,
        body: bytes,
        deadline: Deadline,
        meta: ak.Meta | None = None,
        *,
        attachments: Sequence[Buffer | shared.SharedFrame] = (),
    ) -> Any:
        """The plain result, or a CallError as in Channel.request. After Draining or a loss the channel is no use any more."""
        id = self._begin(method, body, deadline, attachments, meta or {}, flags=0)
        while True:
            message, received = self._receive(deadline, f"{self.label}.{method}", sent=True)
            if isinstance(message, ak.Reply) and message.id == id:
                value = self._value(received)
                if any(map(shared.is_descriptor, received[2:])):
                    self._send_aside(ak.Cancel(id))  # the memory is mapped now: its owner may let go of it
                return value
            self._check_end(message, id)

    def descriptors(self) -> tuple[int, ...]:
        """For poll, when `has_arrived` says no: one of them becomes readable when something may have come."""
        return int(self._sock.fd), int(self._ears.fd)

    def ping(self) -> None:
        """Ask for a sign of life; whoever reads on sees it in `heard_s`."""
        self._send_aside(ak.Ping(self._next_id))

    def has_arrived(self, within_s: float = 0.0) -> bool:
        """Whether something has come, or does within that time: an answer, or the end of the connection."""
        return bool(frames.readable(self._both, int(within_s * 1000)))

    def stream(
        self,
        method: str,
        body: bytes,
        deadline: Deadline,
        meta: ak.Meta | None = None,
        *,
        attachments: Sequence[Buffer | shared.SharedFrame] = (),
        tick_s: float | None = None,
    ) -> Iterator[Any]:
        """The results of a method that yields. While it goes on the channel takes no other call; closing it ends the call.

        With `tick_s`: QUIET whenever that long nothing came."""
        id = self._begin(method, body, deadline, attachments, meta or {}, flags=ak.TAKES_STREAM)
        expected = used = 0
        is_over = False
        try:
            while True:
                if tick_s is not None and not self.has_arrived(tick_s):
                    yield QUIET
                    continue
                come = self._step(deadline, f"{self.label}.{method}", sent=True)
                if come is None:
                    continue
                message, received = come
                if isinstance(message, ak.Chunk) and message.id == id:
                    if message.seq != expected:
                        raise self._broken(InternalError(f"{self.label}.{method}: a value of its stream is missing"))
                    expected += 1
                    yield self._value(received)
                    used += size_of(b"", received[1:])
                    if used * 2 >= self._limits.stream_bytes:
                        self._send_aside(ak.Credit(id, used))
                        used = 0
                    continue
                if isinstance(message, ak.Reply) and message.id == id:
                    is_over = True
                    return
                is_over = isinstance(message, ak.Error) and message.id == id
                self._check_end(message, id)
        finally:
            if not is_over and self.is_usable and not self._sock.closed:
                self._send_aside(ak.Cancel(id))

    def _begin(
        self,
        method: str,
        body: bytes,
        deadline: Deadline,
        attachments: Sequence[Buffer | shared.SharedFrame],
        meta: ak.Meta,
        *,
        flags: int,
    ) -> int:
        """Send a request once the peer has introduced itself; its id."""
        while self.peer is None:
            self._receive(deadline, f"{self.label}.{method}", sent=False)
        self._catch_up()
        refusal = too_large(f"the request for {method}", (body, attachments), self.peer.limits)
        if refusal is not None:
            raise refusal
        id = self._next_id
        self._next_id += 1
        self._sent_s = now_s()
        header = self._pack(codec.request_fields(id, method, deadline.left_ms(), meta, flags))
        self._send([header, body, *shared.frames_for(attachments, may_share=shared.may_share(self.peer.capabilities))])
        return id

    def _check_end(self, message: ak.Message, id: int) -> None:
        """Raises what `message` says about the call `id`, if it ends it."""
        match message:
            case ak.Error() if message.id == id:
                raise from_wire(message.code, message.message, message.retry_safe, message.details)
            case ak.GoAway():
                self.is_usable = False
                if message.last_id < id:
                    raise Draining(f"{self.label} goes away: {message.reason}")
            case _:
                pass  # the late answer of a call that was given up

    def __del__(self) -> None:
        """Its thread ended: with it goes the channel."""
        if hasattr(self, "_both"):  # else it was never connected
            self.close()

    def close(self) -> None:
        """Say BYE and close."""
        self.is_usable = False
        if self._sock.closed:
            return
        if self.peer is not None and self._is_connected:
            with contextlib.suppress(zmq.ZMQError):  # it may have gone already, which is what BYE is about
                frames.send(self._sock, [codec.encode(ak.Bye())])
        self._sock.disable_monitor()
        self._ears.close()
        self._sock.close(linger=200)

    def _catch_up(self) -> None:
        """Read what came since the last call: mostly nothing, sometimes the GOAWAY that saves this one."""
        while frames.is_readable(self._sock):
            try:
                message = codec.decode(frames.receive(self._sock)[0])
            except codec.BadFrame as exc:
                raise self._broken(InternalError(f"{self.label} sent garbage: {exc}")) from exc
            if isinstance(message, ak.GoAway):
                raise self._broken(Draining(f"{self.label} goes away: {message.reason}"))

    def _receive(self, deadline: Deadline, what: str, *, sent: bool) -> tuple[ak.Message, frames.Frames]:
        """The next message for a call. Handles introductions, pings and losses on the way."""
        while True:
            if (come := self._step(deadline, what, sent=sent)) is not None:
                return come

    def _step(self, deadline: Deadline, what: str, *, sent: bool) -> tuple[ak.Message, frames.Frames] | None:
        """Take one thing that came, once it does; None when it was dealt with here."""
        ready = frames.readable(self._both, deadline.left_ms() + 1)
        if self._sock not in ready:  # answers that came before the end count, so the monitor is heard second
            if ready:
                self._hear(sent=sent)
            elif deadline.has_passed():
                self._give_up(sent=sent)
                raise DeadlineExceeded(f"{what}: no answer in time", retry_safe=not sent)
            return None
        received = frames.receive(self._sock)
        self.heard_s = now_s()
        try:
            message = codec.decode(received[0])
        except codec.BadFrame as exc:
            raise self._broken(InternalError(f"{self.label} sent garbage: {exc}")) from exc
        match message:
            case ak.Ping():
                self._send_aside(ak.Pong(message.id))
            case ak.Welcome():
                self.peer = message
                self.expected = self.expected or message.incarnation
                self._is_connected = True
                if not sent:
                    return message, received
            case ak.Error() if message.id == 0:
                raise self._broken(from_wire(message.code, message.message, message.retry_safe, message.details))
            case ak.GoAway() if not sent:
                raise self._broken(Draining(f"{self.label} goes away: {message.reason}"))
            case _ if sent:
                return message, received
        return None

    def _hear(self, *, sent: bool) -> None:
        event, value = event_of(frames.receive(self._ears))
        if event == zmq.EVENT_CONNECTED:
            self._is_connected = True
        elif (refusal := dealer.refusal(self.label, event, value, self.dial)) is not None:
            raise self._broken(refusal)
        elif sent:
            raise self._broken(PeerLost(f"{self.label}: its connection went"))
        elif self._is_connected:
            raise self._broken(Draining(f"{self.label}: {dealer.lost_because(event, self.dial)} before WELCOME"))
        else:
            raise self._broken(Unreachable(f"{self.label}: nobody listens at {self.endpoint}"))

    def _give_up(self, *, sent: bool) -> None:
        """The deadline passed: the peer is told to stop. Without WELCOME the next call had better start afresh; and without a word
        since the request: who stands still would leave it in libzmq's queue, and the next ones behind it."""
        if not sent:
            self.is_usable = False
            return
        self._send_aside(ak.Cancel(self._next_id - 1))
        if self.heard_s < self._sent_s:
            self.close()

    def _send_aside(self, message: ak.Message) -> None:
        """Something that nothing depends on: if the connection went, the monitor says so, and what that means for the call."""
        with contextlib.suppress(zmq.Again):
            frames.send(self._sock, [codec.encode(message)])

    def _send(self, message: Sequence[Buffer]) -> None:
        try:
            frames.send(self._sock, message)
        except zmq.Again as exc:
            raise self._broken(Draining(f"{self.label}: its connection went before the request was sent")) from exc

    def _value(self, received: frames.Frames) -> Any:
        try:
            return unpack(received[1], received[2:]) if len(received) > 1 else None
        except values.Undecodable as exc:
            raise InternalError(f"{self.label}: {exc}") from exc

    def _broken(self, error: CallError) -> CallError:
        self.is_usable = False
        return error
