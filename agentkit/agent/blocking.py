"""Calls for code that blocks: threads of agents, scripts, notebooks. A pooled socket goes straight from the thread to the peer;
no event loop takes part, which makes one call after another about as fast as raw REQ and REP."""

from __future__ import annotations

import inspect
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Final, Unpack

from agentkit.agent.call_options import CallOptions, for_stream
from agentkit.agent.call_start import begin
from agentkit.agent.context import serving
from agentkit.agent.course import Course
from agentkit.agent.dialing import Dialer
from agentkit.agent.fallbacks import LAST_ANSWER, NOTHING, Declared, Fallbacks
from agentkit.agent.routes import Board, Route
from agentkit.clock import now_s
from agentkit.directory.base import AgentRecord
from agentkit.errors import BadRequest, CallCancelled, CallError
from agentkit.names import AgentId, Incarnation
from agentkit.observe.trace import Tracer
from agentkit.resilience.deadline import Deadline
from agentkit.resilience.policy import Balance, CallPolicies
from agentkit.transport.blocking import BlockingChannel
from agentkit.transport.peer import Identity
from agentkit.wire import values
from agentkit.wire.attachments import Content, ContentPacker, Unsent

#: Finds the instances of a name; called in the calling thread, may block for as long as it is given.
Lookup = Callable[[str, Deadline], tuple[AgentRecord, ...]]

_NOTHING: Final[Mapping[str, Any]] = {}


class BlockingCaller:
    """Each thread has channels of its own, which end with the thread; `close` ends those of all threads."""

    def __init__(
        self,
        me: Identity,
        lookup: Lookup,
        *,
        refuse: Callable[[], None] = lambda: None,
        publish: Callable[[str, object], None] | None = None,
        policies: CallPolicies | None = None,
        fallbacks: Declared | None = None,
        awaited: Callable[[Awaitable[Any]], Any] | None = None,
        tracer: Tracer | None = None,
        dialer: Dialer | None = None,
        forget: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`forget`: an instance of this name is not where `lookup` said, so what that says next had better be new.
        `refuse` raises where a blocking call would be a mistake (on an event loop); `publish`: what takes events;
        `awaited`: waits for what a fallback that is `async def` returns; `tracer`: where its calls are traced; None: nowhere."""
        self.me = me
        self.tracer = tracer or Tracer(0)
        self._dialer = dialer or Dialer(me.id.machine)  #: under the lock
        self.fallbacks = Fallbacks(fallbacks)
        self._awaited = awaited
        self._lookup = lookup
        self._forget = forget
        self._refuse = refuse
        self._publish = publish
        self._own = threading.local()
        self._lock = threading.Lock()
        # Weak, so that a thread that ends takes its channels along: authors start many short-lived ones
        self._all: weakref.WeakSet[BlockingChannel] = weakref.WeakSet()
        self._is_closed = False
        self._under_way: Counter[AgentId] = Counter()
        self.board = Board(self._under_way.__getitem__, policies)  #: under the lock
        self._routes: dict[str, Route] = {}

    def call(
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
        """Like `Caller.call`, and blocks until the answer is there."""
        self._refuse()
        if arguments is None:
            arguments = _NOTHING
        try:
            content = self._packer().pack_to_share(arguments)
        except values.Unsendable as exc:
            raise BadRequest(f"{target}.{method}: {exc}") from exc
        course, span, meta = begin(
            self.board, self.tracer, serving(), target, method,
            timeout=timeout, attempts=attempts, balance=balance, key=key, idempotency_key=idempotency_key,
        )  # fmt: skip
        try:
            with span or nullcontext():
                result = self._run(course, target, method, arguments, content, meta)
        except CallError as error:
            with self._lock:
                course.lost(error)
            if fallback is NOTHING and not self.fallbacks.declared:
                raise
            return self._fallen_back(
                self.fallbacks.answer(fallback, target, method, content, arguments, error), target, method
            )
        if fallback is LAST_ANSWER:
            self.fallbacks.remember(target, method, content, result)
        return result

    def _packer(self) -> ContentPacker:
        """This thread's: one for each call would be a reference cycle for each call."""
        own = self._own.__dict__
        packer: ContentPacker | None = own.get("packer")
        if packer is None:
            packer = own["packer"] = ContentPacker()
        return packer

    def _fallen_back(self, result: Any, target: str, method: str) -> Any:
        if not inspect.isawaitable(result):
            return result
        if self._awaited is None:
            if inspect.iscoroutine(result):
                result.close()
            raise BadRequest(f"{target}.{method}: its fallback is async, which takes an agent's event loop")
        return self._awaited(result)

    def _run(
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
            records = self._lookup(target, Deadline(course.at_s))
            with self._lock:
                record = course.choose(self._route(target, records), arguments, now_s())
            channel: BlockingChannel | None = None
            try:
                channel = self._channel(record, course.expected)
                result = channel.request(method, body, Deadline(course.at_s), meta, attachments=attachments)
            except CallError as error:
                if error.code == "unreachable":
                    self._forget(target)
                with self._lock:
                    pause_s = course.failed(error, now_s(), channel)
                if pause_s is None:
                    raise
            except BaseException:
                with self._lock:
                    course.dropped()
                raise
            else:
                with self._lock:
                    course.answered()
                return result
            finally:
                if channel is not None:
                    self._release(record.id, channel)
            time.sleep(pause_s)

    def stream(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[CallOptions]
    ) -> Iterator[Any]:
        """The results of a method that yields, one after another: `for result in caller.stream("X", "tokens", {...})`.

        The call begins with the first result that is asked for and has a connection of its own, so that other calls may be made
        inside the loop. Leaving the loop cancels the handler. `options`: those of `call`."""
        self._refuse()
        try:
            content = self._packer().pack(arguments or {})
        except values.Unsendable as exc:
            raise BadRequest(f"{target}.{method}: {exc}") from exc
        course, span, meta = begin(self.board, self.tracer, serving(), target, method, **for_stream(options))
        with span or nullcontext():
            yield from self._results(course, target, method, arguments or {}, content, meta)

    def _results(
        self,
        course: Course,
        target: str,
        method: str,
        arguments: Mapping[str, Any],
        content: Content,
        meta: Mapping[str, Any],
    ) -> Iterator[Any]:
        body, attachments = content
        has_come = False
        while True:
            records = self._lookup(target, Deadline(course.at_s))
            with self._lock:
                record = course.choose(self._route(target, records), arguments, now_s())
                self._under_way[record.id] += 1
            channel: BlockingChannel | None = None
            try:
                with self._lock:
                    endpoint, dial = self._dialer.where(record)
                channel = BlockingChannel(str(record.id), endpoint, self.me, expected=course.expected, dial=dial)
                for value in channel.stream(method, body, Deadline(course.at_s), meta, attachments=attachments):
                    has_come = True
                    yield value
            except CallError as error:
                with self._lock:
                    pause_s = None if has_come else course.failed(error, now_s(), channel)
                    if pause_s is None:
                        course.lost(error)
                if pause_s is None:
                    raise
            except BaseException:  # GeneratorExit: the loop was left
                with self._lock:
                    course.dropped()
                raise
            else:
                with self._lock:
                    course.answered()
                return
            finally:
                with self._lock:
                    self._under_way[record.id] -= 1
                if channel is not None:
                    channel.close()
            time.sleep(pause_s)

    def publish(self, topic: str, event: object) -> None:
        """Like `BaseAgent.publish`; returns when the event is on its way. DeadlineExceeded: the event loop is blocked."""
        self._refuse()
        if self._publish is None:
            raise BadRequest(f"{topic}: only agents publish from threads; scripts do by `Client.publish`")
        self._publish(topic, event)

    def peer(self, target: str, **options: Unpack[CallOptions]) -> BlockingPeerProxy:
        """`target`'s methods as methods: `caller.peer("TaskManager").create(title="x")`. `options`: those of `call`."""
        return BlockingPeerProxy(self, target, options)

    @property
    def in_flight(self) -> int:
        """Calls of threads without an answer yet, open streams among them."""
        with self._lock:
            return self._under_way.total()

    def release(self) -> None:
        """Say BYE on channels that no call is in; the next one opens another."""
        with self._lock:
            for channel in tuple(self._all):
                if not channel.is_in_use:
                    channel.close()

    def close(self) -> None:
        """Say BYE on every channel of every thread. A call that another thread is in goes on and closes its own; new ones end
        by CallCancelled. (A socket that is in use must not be touched by a second thread.)"""
        with self._lock:
            self._is_closed = True
            for channel in tuple(self._all):
                if not channel.is_in_use:
                    channel.close()

    def _route(self, target: str, records: tuple[AgentRecord, ...]) -> Route:
        route = self._routes.get(target)
        if route is None or route.records != records:  # mostly the same objects, which compares quickly
            route = self._routes[target] = self.board.route(target, records)
        return route

    def _channel(self, record: AgentRecord, expected: Incarnation) -> BlockingChannel:
        """This thread's channel, marked as being in use."""
        channels: dict[AgentId, BlockingChannel] = self._own.__dict__.setdefault("channels", {})
        with self._lock:
            if self._is_closed:
                raise CallCancelled(f"{record.id}: not called, the caller is closed", retry_safe=True)
            channel = channels.get(record.id)
            if (
                channel is None
                or not (channel.is_usable and (channel.expected == expected or expected == 0))
                or not (channel.dial is None or self._dialer.knows(channel.dial))
            ):
                if channel is not None:
                    channel.close()
                endpoint, dial = self._dialer.where(record)
                channel = BlockingChannel(str(record.id), endpoint, self.me, expected=expected, dial=dial)
                channels[record.id] = channel
                self._all.add(channel)
            channel.is_in_use = True
            self._under_way[record.id] += 1
            return channel

    def _release(self, id: AgentId, channel: BlockingChannel) -> None:
        with self._lock:
            channel.is_in_use = False
            self._under_way[id] -= 1
            if self._is_closed:
                channel.close()


class BlockingPeerProxy:
    """One agent's methods, called by their names."""

    def __init__(self, caller: BlockingCaller, target: str, options: CallOptions) -> None:
        self._caller, self._target, self._options = caller, target, options

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda **arguments: self._caller.call(self._target, method, arguments, **self._options)

    def __repr__(self) -> str:
        return f"<peer {self._target}>"
