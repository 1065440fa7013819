"""Events for scripts: what `Client.publish` and `Client.subscribe` are made of."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Self

from agentkit.clock import wall_s
from agentkit.directory.base import Directory
from agentkit.directory.mesh import MeshDirectory
from agentkit.errors import Unreachable
from agentkit.events.delivery import Delivery
from agentkit.events.publisher import Publisher
from agentkit.events.receiver import Receiver
from agentkit.events.route import LocalRoute, RelayRoute, Route
from agentkit.events.topics import Pattern

#: How long a subscription may take to be in force, in seconds; then the node is away.
IN_FORCE_WITHIN_S: Final = 5.0
#: Events that wait for who reads a stream slowly; then new ones are lost, and counted.
QUEUE: Final = 4_096


def route_by(directory: Directory, *, waits_at_close: bool = False) -> Route:
    """By the node that `directory` asks; within this process where there is none."""
    if isinstance(directory, MeshDirectory):
        return RelayRoute(directory.path, directory.ask, waits_at_close=waits_at_close)
    return LocalRoute()


class EventStream:
    """What was subscribed to, one event after another: `async with client.subscribe("task.*") as events: async for one in events:`.

    From the beginning of the block on nothing is missed that this machine publishes; `async for` alone begins with the first
    event that is waited for. Ends when it is closed."""

    def __init__(self, route: Route, patterns: tuple[str, ...], *, queue: int = QUEUE) -> None:
        self._route = route
        self._receiver = Receiver([(Pattern(text, at="subscribe()"), self._offer) for text in patterns])
        self._waiting: deque[Delivery] = deque()
        self._queue = queue
        self._arrived = asyncio.Event()
        self._is_open = False
        self._is_closed = False

    @property
    def lost(self) -> int:
        """How many events were missed so far: on the way, or because they were read too slowly."""
        return self._receiver.lost

    async def open(self) -> None:
        """Subscribe. Unreachable when the node does not answer."""
        if self._is_open:
            return
        self._is_open = True
        if not await self._route.listen(self._receiver, IN_FORCE_WITHIN_S):
            self.close()
            raise Unreachable(f"the node did not take the subscription within {IN_FORCE_WITHIN_S:g} s")

    def close(self) -> None:
        """Nothing arrives any more; what has arrived can still be read."""
        self._is_closed = True
        self._route.close()
        self._arrived.set()

    async def reconnected(self) -> None:
        """The node is there (again)."""
        await self._route.reconnected()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        await self.open()
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def _offer(self, delivery: Delivery) -> bool:
        if len(self._waiting) >= self._queue:
            return False
        self._waiting.append(delivery)
        self._arrived.set()
        return True


class ClientEvents:
    """What one script publishes and subscribes to."""

    def __init__(self, name: str, directory: Directory) -> None:
        self._directory = directory
        self._route = route_by(directory, waits_at_close=True)
        # the time tells two processes apart that get the same pid one after the other
        self._publisher = Publisher(name, int(wall_s() * 1000), self._route.post)
        self._streams: list[EventStream] = []

    async def publish(self, topic: str, event: object) -> None:
        await self._publisher.publish(topic, event)

    def subscribe(self, patterns: tuple[str, ...]) -> EventStream:
        stream = EventStream(route_by(self._directory), patterns)
        self._streams.append(stream)
        return stream

    async def reconnected(self) -> None:
        """The node is there (again)."""
        await self._route.reconnected()
        for stream in self._streams:
            await stream.reconnected()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._route.close()
