"""Calls to other agents: from a name to an answer. Keeps one channel per instance; which instance, and whether once more, is
course.py's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Unpack

from agentkit.agent.call_options import CallOptions, for_stream
from agentkit.agent.call_start import begin
from agentkit.agent.context import serving
from agentkit.agent.course import Course
from agentkit.agent.dialing import Dialer
from agentkit.agent.fallbacks import LAST_ANSWER, NOTHING, Declared, Fallbacks
from agentkit.agent.routes import Board, Route
from agentkit.agent.streaming import PeerCall, Results, StreamingCall, source_of
from agentkit.clock import now_s
from agentkit.directory.base import AgentRecord, Directory
from agentkit.errors import BadRequest, CallCancelled, CallError, PeerLost
from agentkit.names import AgentId, Incarnation
from agentkit.observe.trace import Span, Tracer
from agentkit.resilience.deadline import Deadline
from agentkit.resilience.policy import Balance, CallPolicies
from agentkit.transport.channel import Channel
from agentkit.transport.peer import Identity
from agentkit.wire import values
from agentkit.wire.attachments import ContentPacker, Unsent


class Caller:
    """Belongs to the running loop; who makes it closes it."""

    def __init__(
        self,
        me: Identity,
        directory: Directory,
        *,
        policies: CallPolicies | None = None,
        fallbacks: Declared | None = None,
        tracer: Tracer | None = None,
        dialer: Dialer | None = None,
    ) -> None:
        """`tracer`: where its calls are traced; None: nowhere."""
        self.me = me
        self.tracer = tracer or Tracer(0)
        self._dialer = dialer or Dialer(me.id.machine)
        self.fallbacks = Fallbacks(fallbacks)
        self.directory = directory
        self.board = Board(self._in_flight, policies)
        self._pack = ContentPacker().pack_to_share
        self._channels: dict[AgentId, Channel] = {}
        self._routes: dict[str, Route] = {}
        self._routes_version = -1
        self._is_closed = False

    async def call(
        self,
        target: str,
        method: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        attempts: int | None = None,
        balance: Balance | None = None,
        key: object = None,
        idempotency_key: str | None = None,
        fallback: object = NOTHING,
    ) -> Any:
        """Call `method` of the agent that `target` names and return its plain result.

        Ends within `timeout` seconds (default: what the method declares, else 5 s; inside a handler never later than the
        handler's own deadline). Raises a CallError; its `retry_safe` says whether trying again can run it twice.

        `attempts`: tries at most, where another can do no harm (default: the policy's, 3). `balance`: which of several instances
        (default: what the method declares, else the policy's); `key`: calls with the same one go to the same instance.
        `idempotency_key`: who calls with it again, within the callee's window (5 min), gets the first answer, and the handler
        does not run again. `fallback`: what to return where no answer came: a value, a function that gets the same arguments (async
        or not), or LAST_ANSWER (default: what a method with `@fallback` returns, if there is one)."""
        if arguments is None:
            arguments = {}
        course, span, meta = begin(
            self.board, self.tracer, serving(), target, method,
            timeout=timeout, attempts=attempts, balance=balance, key=key, idempotency_key=idempotency_key,
        )  # fmt: skip
        content: Unsent | None = None
        try:
            try:
                content = self._pack(arguments)
            except values.Unsendable:  # the one thing that msgpack does not take and a call does is a stream
                if idempotency_key is not None:
                    raise BadRequest(
                        f"{target}.{method}: a stream has no idempotency key: nobody can send it again"
                    ) from None
                return await self._streaming(target, method, arguments, course, span, takes=False).result()
            run = self._run(course, target, method, arguments, content, meta)
            result = await (run if span is None else _within(span, run))
        except CallError as error:
            course.lost(error)
            if fallback is NOTHING and not self.fallbacks.declared:
                raise
            result = self.fallbacks.answer(fallback, target, method, content, arguments, error)
            return await result if inspect.isawaitable(result) else result
        if fallback is LAST_ANSWER:
            self.fallbacks.remember(target, method, content, result)
        return result

    async def _run(
        self,
        course: Course,
        target: str,
        method: str,
        arguments: Mapping[str, Any],
        content: Unsent,
        meta: Mapping[str, Any],
    ) -> Any:
        body, attachments = content
        while True:
            route = self._routes.get(target) if self._routes_version == self.directory.version else None
            if route is None:
                route = await self._find(target, Deadline(course.at_s))
            record = course.choose(route, arguments, now_s())
            channel: Channel | None = None
            future: asyncio.Future[Any] | None = None
            try:
                channel = self._channel(record, course.expected)
                id, future = channel.request(method, body, course.at_s, meta, attachments=attachments)
                try:
                    result = await future
                except asyncio.CancelledError:
                    channel.cancel(id)
                    course.dropped()
                    raise
                course.answered()
                return result
            except CallError as error:
                future = None  # it holds the error, the error this frame: that would wait for the garbage collector
                pause_s = course.failed(error, now_s(), channel)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    def stream(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Results:
        """The results of a method that yields, one after another: `async for result in caller.stream("X", "tokens", {...})`.

        The call begins with the first result that is asked for. Its time is the time of the whole stream. Leaving the loop cancels
        the handler; a reader that is slow holds it back. `options`: those of `call`."""
        outer = serving()  # now, not when the first result is asked for: that may be in another's name

        def begun() -> StreamingCall:
            course, span, _ = begin(self.board, self.tracer, outer, target, method, **for_stream(options))
            return self._streaming(target, method, arguments or {}, course, span, takes=True)

        return Results(begun)

    def _streaming(
        self, target: str, method: str, arguments: Mapping[str, Any], course: Course, span: Span | None, *, takes: bool
    ) -> StreamingCall:
        plain, source = source_of(arguments)
        try:
            content = self._pack(plain)
        except values.Unsendable as exc:
            raise BadRequest(f"{target}.{method}: {exc}") from exc

        async def connect() -> Channel:
            route = self._routes.get(target) if self._routes_version == self.directory.version else None
            if route is None:
                route = await self._find(target, Deadline(course.at_s))
            return self._channel(course.choose(route, plain, now_s()), course.expected)

        return StreamingCall(f"{target}.{method}", course, connect, content, takes=takes, source=source, span=span)

    def peer(self, target: str, **options: Unpack[CallOptions]) -> PeerProxy:
        """`target`'s methods as methods: `await caller.peer("TaskManager").create(title="x")`. `options`: those of `call`."""
        return PeerProxy(self, target, options)

    def on_records(self, _name: str, records: tuple[AgentRecord, ...]) -> None:
        """The directory's word: a life that another has replaced answers no more, nor one on a machine that is out of reach,
        whatever its connection looks like."""
        for record in records:
            channel = self._channels.get(record.id)
            if record.phase == "unreachable":
                self.board.breakers.pop(record.id, None)  # when it answers again, it is called again at once
                if channel is not None:
                    channel.close(PeerLost(f"{record.id}: machine {record.id.machine} does not answer"))
            elif (
                channel is not None
                and channel.is_usable
                and 0 < channel.expected < record.incarnation
                and channel.expected != record.predecessor  # it says GOAWAY itself, and answers what it runs
            ):
                channel.close(PeerLost(f"{record.id} was replaced by its next incarnation"))

    def on_keys(self) -> None:
        """Keys came or went: who is called under a key that is not known any more is not called any more."""
        for channel in tuple(self._channels.values()):
            if channel.dial is not None and not self._dialer.knows(channel.dial):
                channel.close(PeerLost(f"{channel.label}: its key was revoked"))

    @property
    def in_flight(self) -> int:
        """Calls without an answer yet, open streams among them."""
        return sum(channel.in_flight for channel in self._channels.values())

    def release(self) -> None:
        """Say BYE on channels that nothing waits for; the next call opens another."""
        for channel in tuple(self._channels.values()):
            if not channel.in_flight:
                channel.close()

    def close(self) -> None:
        """Say BYE on every channel. Calls that wait for an answer end by PeerLost, new ones by CallCancelled."""
        self._is_closed = True
        for channel in tuple(self._channels.values()):
            channel.close()

    async def _find(self, target: str, deadline: Deadline) -> Route:
        if self._routes_version != self.directory.version:
            self._routes.clear()
            self._routes_version = self.directory.version
        async with deadline.scope(f"looking up {target}"):
            records = await self.directory.lookup(target)
        route = self.board.route(target, records)
        if self._routes_version == self.directory.version:
            self._routes[target] = route
        return route

    def _channel(self, record: AgentRecord, expected: Incarnation) -> Channel:
        channel = self._channels.get(record.id)
        if channel is not None and channel.is_usable:
            if channel.expected == expected or expected == 0:
                return channel
            channel.leave()
        if self._is_closed:
            raise CallCancelled(f"{record.id}: not called, the caller is closed", retry_safe=True)
        endpoint, dial = self._dialer.where(record)
        channel = Channel(
            str(record.id), endpoint, self.me, expected=expected, dial=dial, on_end=partial(self._forget, record.id)
        )
        self._channels[record.id] = channel
        return channel

    def _forget(self, id: AgentId, channel: Channel) -> None:
        if self._channels.get(id) is channel:
            del self._channels[id]

    def _in_flight(self, id: AgentId) -> int:
        channel = self._channels.get(id)
        return channel.in_flight if channel is not None else 0


async def _within(span: Span, call: Awaitable[Any]) -> Any:
    with span:
        return await call


class PeerProxy:
    """One agent's methods, called by their names. What an attribute is called is sent as it stands."""

    def __init__(self, caller: Caller, target: str, options: CallOptions) -> None:
        self._caller, self._target, self._options = caller, target, options

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(**arguments: Any) -> PeerCall:
            return PeerCall(
                lambda: self._caller.call(self._target, method, arguments, **self._options),
                lambda: self._caller.stream(self._target, method, arguments, **self._options),
            )

        return call

    def __repr__(self) -> str:
        return f"<peer {self._target}>"
