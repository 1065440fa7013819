"""Connections to the nodes of other machines: made, made better, made again, for as long as anybody wants them.

A link that loses packets, or is cut and healed, leaves TCP waiting for minutes: each retransmission comes twice as late as the one
before. So whoever does not answer is dialled again and again beside the connection that there is, each attempt with a fresh timer,
and the first that gets through takes its place. A near node that is gone refuses at once: it is dialled with growing pauses, and
greets us itself when it starts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from random import Random
from typing import Any, Final, TypeAlias

from agentkit.errors import CallError
from agentkit.names import is_beyond_loopback
from agentkit.observe.log import get_logger
from agentkit.transport.channel import Channel
from agentkit.transport.dealer import Dial
from agentkit.transport.peer import Identity
from startup.node.mesh.peer import MeshTimes, Peer

log = get_logger("node.mesh")

#: Attempts at one node that may be under way at once.
MAX_ATTEMPTS: Final = 5
#: How long the machine itself may take to answer, in seconds: a SYN that is lost is sent again after one.
KNOCK_S: Final = 2.5

#: What a node answers to the first words over a new connection.
Told: TypeAlias = Mapping[str, Any] | None


class Links:
    """One for a mesh. Whoever makes it closes it."""

    def __init__(
        self,
        me: Identity,
        times: MeshTimes,
        *,
        introduce: Callable[[Peer, Channel], Awaitable[Told]],
        on_up: Callable[[Peer, Channel, Told], Awaitable[None]],
        is_wanted: Callable[[Peer], bool],
        find: Callable[[str], str | None],
        dial: Callable[[str, str], Dial | None],
        on_unmet: Callable[[str], None],
        on_broke: Callable[[Peer], None],
        on_there: Callable[[Peer], None],
    ) -> None:
        """`introduce` speaks over a new connection first; CallError: it is no good. `on_up` is told its result, when the connection
        is the one in use. `is_wanted`: whether a (better) one is needed
        now. `find`: where a node of this host says that it listens, by machine. `on_broke`: the one in use ended by itself.
        `dial`: the keys for a machine at an endpoint; CallError: none of it is known. `on_unmet`: it accepted, and said nothing.
        `on_there`: its machine answered in its node's stead."""
        self.times = times
        self._me = me
        self._introduce = introduce
        self._on_up = on_up
        self._is_wanted = is_wanted
        self._find = find
        self._dial = dial
        self._on_unmet = on_unmet
        self._on_broke = on_broke
        self._on_there = on_there
        self._random = Random()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False

    def press(self, peer: Peer) -> None:
        """Dial now, and again until one is there that is good enough."""
        if peer.redial is None and not self._is_closing and self._is_wanted(peer):
            self._try(peer)

    def dial(self, peer: Peer) -> None:
        """One attempt, unless many are under way."""
        endpoint = self._endpoint(peer)
        if self._is_closing or endpoint is None or len(peer.attempts) >= MAX_ATTEMPTS:
            return
        peer.dials += 1
        try:
            dial = self._dial(peer.machine, endpoint)
        except CallError as error:
            log.warning("mesh.no_key", machine=peer.machine, error=str(error))
            return
        channel = Channel(f"node {peer.machine}", endpoint, self._me, dial=dial, on_end=partial(self._on_end, peer))
        peer.attempts[channel] = self._loop.call_later(self.times.give_up_s, channel.close)
        self.spawn(self._attempt(peer, channel), f"mesh:introduce {peer.machine}")

    def drop(self, peer: Peer) -> None:
        """End everything that there is of it."""
        if peer.redial is not None:
            peer.redial.cancel()
            peer.redial = None
        channel, peer.channel = peer.channel, None
        peer.is_synced = False
        for attempt in list(peer.attempts):
            attempt.close()
        if channel is not None:
            channel.close()

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """A task that ends with the links."""
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def close(self) -> None:
        """After every peer was dropped."""
        self._is_closing = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- attempts

    def _try(self, peer: Peer) -> None:
        peer.redial = None
        if self._is_closing or not self._is_wanted(peer):
            peer.pause_s = 0.0
            return
        self.dial(peer)
        peer.redial = self._loop.call_later(self._pause_s(peer), self._try, peer)

    def _pause_s(self, peer: Peer) -> float:
        """Until the next attempt. A near one has refused the last one before this is over; a far one is found again this soon."""
        if is_far(peer):
            return self.times.dial_s * self._random.uniform(0.75, 1.25)
        first_s, last_s = self.times.redial_s
        peer.pause_s = min(max(peer.pause_s * 2, first_s), last_s)
        return peer.pause_s

    async def _attempt(self, peer: Peer, channel: Channel) -> None:
        try:
            told = await self._introduce(peer, channel)
        except CallError as error:
            log.debug("mesh.not_introduced", machine=peer.machine, endpoint=channel.endpoint, error=str(error))
            channel.close()
            return
        timer = peer.attempts.pop(channel, None)
        if timer is None:  # dropped, or another was faster
            return
        timer.cancel()
        before, peer.channel = peer.channel, channel
        peer.pause_s, peer.is_doubtful = 0.0, False
        for other in list(peer.attempts):
            other.close()
        if before is not None:
            before.close()
        await self._on_up(peer, channel, told)

    def _on_end(self, peer: Peer, channel: Channel) -> None:
        timer = peer.attempts.pop(channel, None)
        if timer is not None:
            timer.cancel()
            if channel.is_connected and channel.peer is None:
                self._on_unmet(peer.machine)
            if not self._is_closing and self._is_wanted(peer):
                self.knock(peer)
        elif channel is peer.channel:
            peer.channel = None
            peer.is_synced = False
            if not self._is_closing:
                self._on_broke(peer)
                self.press(peer)

    def knock(self, peer: Peer) -> None:
        """Is its machine there, whatever its node does? A connection that the kernel takes, or refuses, is an answer; one more that is
        lost on the way costs a SYN."""
        if not is_far(peer):
            self._on_there(peer)  # it is this one
            return
        endpoint = peer.configured or peer.told
        if endpoint is not None and not self._is_closing:
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            self.spawn(self._knock(peer, host.strip("[]"), int(port)), f"mesh:knock {peer.machine}")

    async def _knock(self, peer: Peer, host: str, port: int) -> None:
        try:
            async with asyncio.timeout(KNOCK_S):
                found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                family, kind, _, _, address = found[0]
                with socket.socket(family, kind) as sock:
                    sock.setblocking(False)
                    await self._loop.sock_connect(sock, address)
        except ConnectionRefusedError:
            pass
        except OSError:  # TimeoutError is one
            return
        self._on_there(peer)

    def _endpoint(self, peer: Peer) -> str | None:
        """Where to try this time: by turns, where several are known."""
        if found := self._find(peer.machine):
            peer.told = found
        if peer.told is not None and is_far(peer) and not is_beyond_loopback(peer.told):
            peer.told = None  # it listens on its own loopback: it has not been told its address yet
        known = list(dict.fromkeys(endpoint for endpoint in (peer.told, peer.configured) if endpoint is not None))
        return known[peer.dials % len(known)] if known else None

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("mesh.task_failed", task=task.get_name(), exc_info=error)


def is_far(peer: Peer) -> bool:
    """Whether there may be a link between us that can be cut."""
    endpoint = peer.configured or peer.told
    return endpoint is not None and is_beyond_loopback(endpoint)
