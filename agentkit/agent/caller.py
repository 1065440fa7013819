"""Calls to other agents: from a name to an answer. Finds the instance, keeps one channel per instance, moves calls that were
certainly not run when their peer goes away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from agentkit.agent.context import serving
from agentkit.directory.balance import choose
from agentkit.directory.base import INBOX, INBOX_LOCAL, AgentRecord, Directory
from agentkit.errors import BadRequest, CallCancelled, DeadlineExceeded, Draining, PeerLost, Unreachable
from agentkit.names import AgentId, Incarnation
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S, Deadline
from agentkit.transport.channel import Channel
from agentkit.transport.peer import Identity
from agentkit.wire import values
from agentkit.wire.attachments import ContentPacker

#: Pause before a call is moved to another channel, in seconds: first, and at most. Doubled with each move, jittered.
MOVE_PAUSE_S: Final = (0.001, 0.05)


class Caller:
    """Belongs to the running loop; who makes it closes it."""

    def __init__(self, me: Identity, directory: Directory) -> None:
        self.me = me
        self.directory = directory
        self._pack = ContentPacker().pack
        self._channels: dict[AgentId, Channel] = {}
        self._routes: dict[str, tuple[AgentRecord, ...]] = {}
        self._routes_version = -1
        self._turn = 0
        self._is_closed = False

    async def call(
        self, target: str, method: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Any:
        """Call `method` of the agent that `target` names and return its plain result.

        Ends within `timeout` seconds (default: what the method declares, else 5 s; inside a handler never later than the
        handler's own deadline). Raises a CallError; its `retry_safe` says whether trying again can run it twice."""
        try:
            body, attachments = self._pack(arguments or {})
        except values.Unsendable as exc:
            raise BadRequest(f"{target}.{method}: {exc}") from exc
        deadline = _deadline(timeout)
        has_declared = timeout is not None
        pause_s = MOVE_PAUSE_S[0]
        shunned: Incarnation | None = None
        while True:
            records = await self._find(target, deadline)
            record = choose(target, records, self._in_flight, self._turn)
            self._turn += 1
            if not has_declared and method in record.timeouts_s:
                deadline, has_declared = _deadline(record.timeouts_s[method]), True  # once: moving must not prolong it
            # The directory may lag behind a restart: whoever sent us away is not asked for by number again
            expected = Incarnation(0) if record.incarnation == shunned else record.incarnation
            channel = self._channel(record, expected)
            id, future = channel.request(method, body, deadline.at_s, {}, attachments=attachments)
            try:
                return await future
            except asyncio.CancelledError:
                channel.cancel(id)
                raise
            except Draining as moved:
                shunned = record.incarnation
                if deadline.left_s() <= pause_s:
                    raise DeadlineExceeded(
                        f"{target}.{method}: {moved.message}, and time is up", retry_safe=True
                    ) from moved
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, MOVE_PAUSE_S[1])

    def peer(self, target: str, *, timeout: float | None = None) -> PeerProxy:
        """`target`'s methods as methods: `await caller.peer("TaskManager").create(title="x")`."""
        return PeerProxy(self, target, timeout)

    def on_records(self, _name: str, records: tuple[AgentRecord, ...]) -> None:
        """The directory's word: a life that another has replaced answers no more, whatever its connection looks like."""
        for record in records:
            channel = self._channels.get(record.id)
            if channel is not None and channel.is_usable and 0 < channel.expected < record.incarnation:
                channel.close(PeerLost(f"{record.id} was replaced by its next incarnation"))

    def close(self) -> None:
        """Say BYE on every channel. Calls that wait for an answer end by PeerLost, new ones by CallCancelled."""
        self._is_closed = True
        for channel in tuple(self._channels.values()):
            channel.close()

    async def _find(self, target: str, deadline: Deadline) -> tuple[AgentRecord, ...]:
        if self._routes_version != self.directory.version:
            self._routes.clear()
            self._routes_version = self.directory.version
        records = self._routes.get(target)
        if records is None:
            async with deadline.scope(f"looking up {target}"):
                records = await self.directory.lookup(target)
            if self._routes_version == self.directory.version:
                self._routes[target] = records
        return records

    def _channel(self, record: AgentRecord, expected: Incarnation) -> Channel:
        channel = self._channels.get(record.id)
        if channel is not None and channel.is_usable:
            if channel.expected == expected or expected == 0:
                return channel
            channel.leave()
        if self._is_closed:
            raise CallCancelled(f"{record.id}: not called, the caller is closed", retry_safe=True)
        endpoint = endpoint_for(record, self.me.id.machine)
        channel = Channel(str(record.id), endpoint, self.me, expected=expected, on_end=partial(self._forget, record.id))
        self._channels[record.id] = channel
        return channel

    def _forget(self, id: AgentId, channel: Channel) -> None:
        if self._channels.get(id) is channel:
            del self._channels[id]

    def _in_flight(self, id: AgentId) -> int:
        channel = self._channels.get(id)
        return channel.in_flight if channel is not None else 0


class PeerProxy:
    """One agent's methods, called by their names. What an attribute is called is sent as it stands."""

    def __init__(self, caller: Caller, target: str, timeout: float | None) -> None:
        self._caller, self._target, self._timeout = caller, target, timeout

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)

        async def call(**arguments: Any) -> Any:
            return await self._caller.call(self._target, method, arguments, timeout=self._timeout)

        return call

    def __repr__(self) -> str:
        return f"<peer {self._target}>"


def endpoint_for(record: AgentRecord, my_machine: str) -> str:
    """Where to connect: loopback for an agent of this machine, its machine's address for others."""
    same_machine = record.id.machine == my_machine
    names = (INBOX_LOCAL, INBOX) if same_machine else (INBOX, INBOX_LOCAL)
    for name in names:
        if name in record.endpoints:
            return record.endpoints[name]
    raise Unreachable(f"{record.id} has no inbox: it is {record.phase}")


def _deadline(timeout: float | None) -> Deadline:
    """`timeout` from now, within the deadline of the handler that calls."""
    deadline = Deadline.after(DEFAULT_TIMEOUT_S if timeout is None else timeout)
    outer = serving()
    return outer.deadline if outer is not None and outer.at_s < deadline.at_s else deadline
