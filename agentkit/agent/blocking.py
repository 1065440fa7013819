"""Calls for code that blocks: threads of agents, scripts, notebooks. A pooled socket goes straight from the thread to the peer;
no event loop takes part, which makes one call after another about as fast as raw REQ and REP."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final

from agentkit.agent.caller import MOVE_PAUSE_S, endpoint_for
from agentkit.agent.context import serving
from agentkit.directory.balance import choose
from agentkit.directory.base import AgentRecord
from agentkit.errors import BadRequest, CallCancelled, DeadlineExceeded, Draining
from agentkit.names import AgentId, Incarnation
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S, Deadline
from agentkit.transport.blocking import BlockingChannel
from agentkit.transport.peer import Identity
from agentkit.wire import values
from agentkit.wire.attachments import ContentPacker

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
    ) -> None:
        """`refuse` raises where a blocking call would be a mistake (on an event loop); `publish`: what takes events."""
        self.me = me
        self._lookup = lookup
        self._refuse = refuse
        self._publish = publish
        self._own = threading.local()
        self._lock = threading.Lock()
        # Weak, so that a thread that ends takes its channels along: authors start many short-lived ones
        self._all: weakref.WeakSet[BlockingChannel] = weakref.WeakSet()
        self._is_closed = False
        self._turn = 0

    def call(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Like `Caller.call`, and blocks until the answer is there."""
        self._refuse()
        try:
            body, attachments = ContentPacker().pack(arguments or _NOTHING)
        except values.Unsendable as exc:
            raise BadRequest(f"{target}.{method}: {exc}") from exc
        deadline = Deadline.after(DEFAULT_TIMEOUT_S if timeout is None else timeout)
        outer = serving()
        has_declared = timeout is not None
        pause_s = MOVE_PAUSE_S[0]
        shunned: Incarnation | None = None
        while True:
            record = choose(target, self._lookup(target, deadline), lambda _: 0, self._turn)
            self._turn += 1
            if not has_declared and method in record.timeouts_s:
                deadline, has_declared = (
                    Deadline.after(record.timeouts_s[method]),
                    True,
                )  # once: moving must not prolong it
            if outer is not None and outer.at_s < deadline.at_s:
                deadline = outer.deadline
            expected = Incarnation(0) if record.incarnation == shunned else record.incarnation
            channel = self._channel(record, expected)
            try:
                return channel.request(method, body, deadline, attachments=attachments)
            except Draining as moved:
                shunned = record.incarnation
                if deadline.left_s() <= pause_s:
                    raise DeadlineExceeded(
                        f"{target}.{method}: {moved.message}, and time is up", retry_safe=True
                    ) from moved
            finally:
                self._release(channel)
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, MOVE_PAUSE_S[1])

    def publish(self, topic: str, event: object) -> None:
        """Like `BaseAgent.publish`; returns when the event is on its way. DeadlineExceeded: the event loop is blocked."""
        self._refuse()
        if self._publish is None:
            raise BadRequest(f"{topic}: only agents publish from threads; scripts do by `Client.publish`")
        self._publish(topic, event)

    def peer(self, target: str, *, timeout: float | None = None) -> BlockingPeerProxy:
        """`target`'s methods as methods: `caller.peer("TaskManager").create(title="x")`."""
        return BlockingPeerProxy(self, target, timeout)

    def close(self) -> None:
        """Say BYE on every channel of every thread. A call that another thread is in goes on and closes its own; new ones end
        by CallCancelled. (A socket that is in use must not be touched by a second thread.)"""
        with self._lock:
            self._is_closed = True
            for channel in tuple(self._all):
                if not channel.is_in_use:
                    channel.close()

    def _channel(self, record: AgentRecord, expected: Incarnation) -> BlockingChannel:
        """This thread's channel, marked as being in use."""
        channels: dict[AgentId, BlockingChannel] = self._own.__dict__.setdefault("channels", {})
        endpoint = endpoint_for(record, self.me.id.machine)
        with self._lock:
            if self._is_closed:
                raise CallCancelled(f"{record.id}: not called, the caller is closed", retry_safe=True)
            channel = channels.get(record.id)
            if channel is None or not (channel.is_usable and (channel.expected == expected or expected == 0)):
                if channel is not None:
                    channel.close()
                channel = channels[record.id] = BlockingChannel(str(record.id), endpoint, self.me, expected=expected)
                self._all.add(channel)
            channel.is_in_use = True
            return channel

    def _release(self, channel: BlockingChannel) -> None:
        with self._lock:
            channel.is_in_use = False
            if self._is_closed:
                channel.close()


class BlockingPeerProxy:
    """One agent's methods, called by their names."""

    def __init__(self, caller: BlockingCaller, target: str, timeout: float | None) -> None:
        self._caller, self._target, self._timeout = caller, target, timeout

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda **arguments: self._caller.call(self._target, method, arguments, timeout=self._timeout)

    def __repr__(self) -> str:
        return f"<peer {self._target}>"
