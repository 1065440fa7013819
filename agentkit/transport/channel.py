"""A channel: one DEALER, one TCP connection, one peer incarnation, many calls at once.

libzmq never reconnects it (`RECONNECT_IVL=-1`): a reconnected socket may hand queued frames to the next process after the caller
was told `peer_lost`, and an idle one would wake a sleeper. So a channel ends with its connection, and whoever calls opens a new
one. Requests wait here, never in libzmq's queue, until WELCOME: what is lost before it certainly did not run.

One state machine over two tables of calls, those sent and those that wait: that is why this is one module."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

import zmq

from agentkit.clock import now_s
from agentkit.errors import CallError, DeadlineExceeded, Draining, InternalError, PeerLost, from_wire
from agentkit.names import Incarnation
from agentkit.observe.log import get_logger
from agentkit.resilience.deadline import DeadlineQueue
from agentkit.transport import dealer, frames
from agentkit.transport.batch import BATCH_FRAME_BYTES, Batch, Part, messages
from agentkit.transport.call import Call
from agentkit.transport.monitor import LOST, REFUSED, Monitor
from agentkit.transport.peer import Identity
from agentkit.transport.reader import Reader
from agentkit.transport.streams import CallStreams, Received, StreamBroken
from agentkit.transport.vigil import Vigil, never_met
from agentkit.wire import codec, shared, values
from agentkit.wire import envelope as ak
from agentkit.wire.attachments import too_large, unpack
from agentkit.wire.envelope import Limits
from agentkit.wire.flat import Buffer

log = get_logger("agentkit.channel")


class State(Enum):
    OPENING = auto()  #: connecting, or waiting for WELCOME; requests wait
    OPEN = auto()
    LEAVING = auto()  #: the peer drains: no new calls; last answers are taken, then BYE
    CLOSED = auto()


class Channel:
    """Calls to one life of one agent. Belongs to the running loop."""

    def __init__(
        self,
        label: str,
        endpoint: str,
        me: Identity,
        *,
        expected: Incarnation = Incarnation(0),
        limits: Limits = Limits(),
        dial: dealer.Dial | None = None,
        on_end: Callable[[Channel], None] = lambda _: None,
    ) -> None:
        """Connects at once. `expected` 0 accepts any life. `dial`: the keys of an encrypted connection.
        `on_end` is called when it takes no calls any more and is closed."""
        self.label = label
        self.endpoint = endpoint
        self.expected = expected
        self._enter(State.OPENING)
        self.peer: ak.Welcome | None = None
        self.is_connected = False
        self.dial = dial
        self._limits = limits
        self._on_end = on_end
        self._pack = values.Packer().pack
        self._may_batch = self._may_share = False
        self._batch: Batch[None] = Batch(self._send_requests)
        self._loop = asyncio.get_running_loop()
        self._next_id = 1
        self._calls: dict[int, Call] = {}  # sent
        self._waiting: dict[int, tuple[Call, float]] = {}  # not sent yet, in order; with their deadline
        self._peer_limits = Limits()
        self._deadlines = DeadlineQueue(self._loop, self._on_deadline)
        self._vigil = Vigil(self._loop, is_owed=lambda: self.in_flight > 0, ask=self.ping, lose=self._lose)
        self._sock = dealer.opened(limits, dial)
        self._sock.sndhwm = self._sock.rcvhwm = 0  # bounded by the calls in flight, which the peer limits
        self._monitor = Monitor(self._sock, int(LOST | REFUSED | zmq.EVENT_CONNECTED), self._on_connection)
        self._sock.connect(endpoint)
        self._reader = Reader(self._sock, self._on_frames)
        self._send([codec.encode(me.hello(expected, limits, (ak.BATCHES, *shared.capability())))])

    # -- calling ------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls without an answer yet."""
        return len(self._calls) + len(self._waiting)

    def request(
        self,
        method: str,
        body: bytes,
        at_s: float,
        meta: ak.Meta,
        *,
        attachments: Sequence[Buffer | shared.SharedFrame] = (),
        idempotent: bool = False,
        streams: CallStreams | None = None,
    ) -> tuple[int, asyncio.Future[Any]]:
        """Start a call that ends at `at_s`; returns its id (for `cancel`) and its future.

        The future ends with the plain result or a CallError: Draining or Unreachable with `retry_safe` when it
        certainly did not run and may be tried on another channel, PeerLost when nobody knows."""
        content = (body, attachments)
        if attachments or len(body) > self._peer_limits.frame_bytes:
            refusal = too_large(f"the request for {method}", content, self._peer_limits)
            if refusal is not None:
                raise refusal
        id = self._next_id
        self._next_id = id + 1
        future: asyncio.Future[Any] = self._loop.create_future()
        call = Call(method, content, meta, future, idempotent, streams)
        if streams is not None:
            streams.attach(id, self._limits.stream_bytes, self._send_part)
            future.add_done_callback(streams.ended)
        self._deadlines.add(id, at_s)
        if self._is_open and not self._waiting and len(self._calls) < self._peer_limits.in_flight:
            self._send_call(id, call, at_s)
        else:
            self._waiting[id] = (call, at_s)
        if not self._vigil.is_kept:
            self._vigil.begin()
        return id, future

    def cancel(self, id: int) -> None:
        """The caller does not want the answer any more."""
        if self._waiting.pop(id, None) is None:
            call = self._calls.pop(id, None)
            if call is None:
                return
            self._deadlines.remove(id)
            self._send([codec.encode(ak.Cancel(id))])
        self._after_answer()

    @property
    def heard_s(self) -> float:
        """When the peer last said anything (monotonic); before it did: when the channel was opened."""
        return self._vigil.heard_s

    def ping(self) -> None:
        """Ask an idle peer for a sign of life, seen in `heard_s`. No call, no deadline, no timer: it wakes nobody but the two."""
        if self.peer is not None and self.state is not State.CLOSED:
            self._send([codec.encode(ak.Ping(self._next_id))])

    def leave(self) -> None:
        """Take no new calls; close as soon as the last answer is in."""
        if self.is_usable:
            self._enter(State.LEAVING)
            self._move_waiting(Draining(f"{self.label} is stopping"))
            self._after_answer()

    def close(self, error: CallError | None = None) -> None:
        """End it now. Calls that were sent fail with `error`, else PeerLost."""
        if self.state is State.CLOSED:
            return
        if error is None and self.peer is not None and self.is_connected:
            self._send([codec.encode(ak.Bye())])
        self._end(error or PeerLost(f"the channel to {self.label} was closed"), linger_ms=200)

    def _enter(self, state: State) -> None:
        self.state = state
        # what every call asks: looking at an enum's members costs 0.1 us each time
        self._is_open = state is State.OPEN
        self.is_usable = state in (State.OPENING, State.OPEN)  #: it takes new calls

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, message: Sequence[Buffer]) -> bool:
        """Whether libzmq took it."""
        try:
            frames.send(self._sock, message)
        except zmq.Again:
            # RECONNECT_IVL=-1 and the connection is gone: the monitor's word is on its way
            self._loop.call_soon(self._lose, "its connection went")
            return False
        finally:
            self._reader.poke()
        return True

    def _send_call(self, id: int, call: Call, at_s: float) -> None:
        budget_ms = int((at_s - now_s()) * 1000)
        if budget_ms <= 0:
            self._deadlines.remove(id)
            why = f"{self.label}.{call.method}: time was up before it was sent"
            call.fail(DeadlineExceeded(why, retry_safe=True))
            return
        self._calls[id] = call
        part = call.begin(id, budget_ms, self._peer_limits, may_share=self._may_share)
        if len(self._calls) > 1:
            self._batch.add(None, part)
        else:  # nobody to share the way with
            self._send_requests(None, [part])

    def _send_part(self, part: Part) -> None:
        """Something that belongs to a call; what becomes of it the call's own end tells."""
        if self.state is not State.CLOSED:
            self._batch.add(None, part)

    def _send_requests(self, _: None, parts: list[Part]) -> None:
        calls = self._calls
        parts = [part for part in parts if part[0][1] in calls]  # some may have ended since
        sent = 0
        for count, message in messages(parts, self._pack, may_batch=self._may_batch):
            if not self._send(message):
                # the connection went first: these certainly do not run, whatever becomes of the others
                for part in parts[sent:]:
                    call = self._unsent(part)
                    if call is not None:
                        id: int = part[0][1]  # type: ignore[assignment]
                        self._fail(id, call, Draining(f"{self.label}: its connection went before the request was sent"))
                return
            sent += count

    def _unsent(self, part: Part) -> Call | None:
        """The call that `part` was to begin, taken out; None for what continues one."""
        return self._calls.pop(part[0][1], None) if part[0][0] == ak.Kind.REQUEST else None  # type: ignore[call-overload]

    def _send_waiting(self) -> None:
        while self._waiting and self.state is State.OPEN and len(self._calls) < self._peer_limits.in_flight:
            id = next(iter(self._waiting))
            call, at_s = self._waiting.pop(id)
            refusal = too_large(f"the request for {call.method}", call.content, self._peer_limits)
            if refusal is not None:
                self._fail(id, call, refusal)
            else:
                self._send_call(id, call, at_s)

    # -- receiving ----------------------------------------------------------------------------------------------------

    def _on_frames(self, received: frames.Frames) -> None:
        self._vigil.heard_s = now_s()
        try:
            message = codec.decode(received[0])
            if type(message) is ak.Batch:
                self._reader.enough()
                items = iter(message.items)
                for fields, body in zip(items, items, strict=True):
                    message = codec.read(fields)
                    if type(message) is ak.Reply:  # as nearly all are
                        self._on_reply(message[0], () if body is None else (body,))
                    else:
                        self._on_message(message, () if body is None else (body,))
            else:
                self._on_message(message, received[1:])
        except codec.BadFrame as exc:
            log.warning("channel.bad_frame", peer=self.label, why=str(exc))

    def _on_message(self, message: ak.Message, content: Sequence[Any]) -> None:
        match message:
            case ak.Reply():
                self._on_reply(message.id, content)
            case ak.Chunk():
                self._on_chunk(message, Received.of(content))
            case ak.Credit():
                call = self._calls.get(message.id)
                if call is not None and call.streams is not None:
                    call.streams.granted(message.n)
            case ak.Error():
                self._on_error(message)
            case ak.Welcome():
                self._on_welcome(message)
            case ak.GoAway():
                self._on_goaway(message)
            case ak.Ping():
                self._send([codec.encode(ak.Pong(message.id))])
            case _:
                pass  # PONG was heard, which is all it is for; the rest is for inboxes

    def _on_reply(self, id: int, content: Sequence[Any]) -> None:
        call = self._calls.pop(id, None)
        if call is None:
            return  # cancelled, or its deadline passed
        self._deadlines.remove(id)
        future = call.future
        if not future.done():
            try:
                future.set_result(unpack(content[0], content[1:]) if content else None)
            except values.Undecodable as exc:
                future.set_exception(from_wire("internal", f"{self.label}.{call.method}: {exc}", False, {}))
        if len(content) > 1 and any(map(shared.is_descriptor, content[1:])):
            self._send([codec.encode(ak.Cancel(id))])  # the memory is mapped now: its owner may let go of it
        if self._waiting or not self._is_open:
            self._after_answer()

    def _on_chunk(self, chunk: ak.Chunk, value: Received) -> None:
        call = self._calls.get(chunk.id)
        if call is None or call.streams is None:
            return  # cancelled, or its deadline passed
        try:
            call.streams.received(chunk.seq, value)
        except StreamBroken as exc:
            call.fail(InternalError(f"{self.label}.{call.method}: {exc}"))
            self.cancel(chunk.id)

    def _on_error(self, error: ak.Error) -> None:
        failure = from_wire(error.code, error.message, error.retry_safe, error.details)
        if error.id == 0:  # about the channel: refused at HELLO
            self._end(failure, waiting=failure)
            return
        call = self._calls.pop(error.id, None)
        if call is not None:
            self._fail(error.id, call, failure)
            self._after_answer()

    def _on_welcome(self, welcome: ak.Welcome) -> None:
        if self.state is State.OPENING:
            self.peer = welcome
            self.expected = (
                self.expected or welcome.incarnation
            )  # whoever was forked for us is whom we mean from now on
            self._peer_limits = welcome.limits
            self._may_batch = ak.BATCHES in welcome.capabilities and welcome.limits.frame_bytes >= BATCH_FRAME_BYTES
            self._may_share = shared.may_share(welcome.capabilities)
            self._enter(State.OPEN)
            self._vigil.has_met = True
            self._send_waiting()

    def _on_goaway(self, goaway: ak.GoAway) -> None:
        reason = f"{self.label} goes away: {goaway.reason}"
        if self.state is State.OPENING:
            self._end(Draining(reason))
            return
        if self.state is State.OPEN:
            self._enter(State.LEAVING)
            # Above last_id nothing was or will be run: these calls move at once.
            for id in [id for id in self._calls if id > goaway.last_id]:
                self._fail(id, self._calls.pop(id), Draining(reason))
            self._move_waiting(Draining(reason))
            self._after_answer()

    def _after_answer(self) -> None:
        if self.state is State.OPEN:
            self._send_waiting()
        elif self.state is State.LEAVING and not self._calls and not self._waiting:
            self._send([codec.encode(ak.Bye())])
            self._end(Draining(f"{self.label} went away"), linger_ms=200)

    # -- losing -------------------------------------------------------------------------------------------------------

    def _on_connection(self, event: int, value: int) -> None:
        if event == zmq.EVENT_CONNECTED:
            self.is_connected = True
        elif (refusal := dealer.refusal(self.label, event, value, self.dial)) is not None:
            self._end(refusal, waiting=refusal)
        else:
            self._reader.drain_now()  # answers that came before the end count
            self._lose(dealer.lost_because(event, self.dial))

    def _lose(self, why: str) -> None:
        if self.state is State.CLOSED:
            return
        if self.peer is None:
            error = never_met(self.label, self.endpoint, why, was_accepted=self.is_connected)
            self._end(error, waiting=error)
        else:
            self._end(PeerLost(f"{self.label}: {why}"))

    def _on_deadline(self, id: int) -> None:
        waiting = self._waiting.pop(id, None)
        call = waiting[0] if waiting else self._calls.pop(id, None)
        if call is None:
            return
        if waiting is None:
            self._vigil.missed_s = now_s()
            self._send([codec.encode(ak.Cancel(id))])
        why = f"{self.label}.{call.method}: no answer in time"
        call.fail(DeadlineExceeded(why, retry_safe=waiting is not None or call.idempotent))
        self._after_answer()

    def _fail(self, id: int, call: Call, error: CallError) -> None:
        self._deadlines.remove(id)
        call.fail(error)

    def _move_waiting(self, error: CallError) -> None:
        waiting = list(self._waiting.items())
        self._waiting.clear()
        for id, (call, _) in waiting:
            self._fail(id, call, error)

    def _end(self, error: CallError, *, waiting: CallError | None = None, linger_ms: int = 0) -> None:
        """Everything that was sent ends by `error`; what was not sent by `waiting`, which says that it may be tried again."""
        if self.state is State.CLOSED:
            return
        self._enter(State.CLOSED)
        self._monitor.close()
        self._reader.close()
        self._deadlines.close()
        self._vigil.end()
        self._sock.close(linger=linger_ms)
        for part in self._batch.take(None):  # it was to leave at the end of this turn: nobody has seen it
            call = self._unsent(part)
            if call is not None:
                self._waiting[part[0][1]] = (call, 0.0)  # type: ignore[index]
        self._move_waiting(waiting or Draining(f"{self.label}: {error.message}"))
        calls = tuple(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.lose(error)
        self._on_end(self)
