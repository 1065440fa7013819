"""How frames get from publishers to subscribers: through the relay of a node, or, without a node, within the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from agentkit.errors import CallError, Unreachable
from agentkit.events import local
from agentkit.events.delivery import MAX_EVENT_BYTES
from agentkit.events.probing import Probing
from agentkit.observe.log import get_logger
from agentkit.transport.pubsub import Endpoints, Sender, Subscriber

log = get_logger("agentkit.events")

#: One operation of the conversation with the node (directory.mesh.MeshDirectory.ask).
Ask = Callable[..., Awaitable[Any]]


class Listener(Protocol):
    """Takes frames: a receiver, or what stands before one."""

    @property
    def prefixes(self) -> list[bytes]: ...
    def take(self, frame: bytes) -> None: ...


class Route(Protocol):
    """Where a publisher's frames go and a subscriber's come from. Belongs to the running loop."""

    def post(self, frame: bytes) -> bool:
        """Hand a frame over; whether there was room."""
        ...

    async def listen(self, receiver: Listener, limit_s: float) -> bool:
        """Let `receiver` take what it asks for, from now until `close`; whether that was in force within `limit_s`."""
        ...

    async def reconnected(self) -> None:
        """The node, perhaps another one than before, is there (again)."""
        ...

    def safety_check(self) -> int:
        """Take what an eaten edge may have hidden; how many frames that were."""
        ...

    def stop_listening(self) -> None:
        """Nothing is received any more."""
        ...

    def close(self) -> None:
        """Nothing is sent any more, either."""
        ...


class LocalRoute:
    """Within this process: for agents run by hand and in tests."""

    def __init__(self) -> None:
        self._listeners: list[local.Listener] = []

    def post(self, frame: bytes) -> bool:
        return local.post(frame)

    async def listen(self, receiver: Listener, limit_s: float) -> bool:  # noqa: ARG002 - Route's signature
        self._listeners.append(local.Listener(receiver.prefixes, receiver.take))
        return True

    async def reconnected(self) -> None:
        """There is no node."""

    def safety_check(self) -> int:
        return 0

    def stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def close(self) -> None:
        self.stop_listening()


class RelayRoute:
    """Through the node whose control socket is at `path`. Sockets are opened on first use: who has no events pays nothing.

    The relay's addresses follow from the node's; the node is only asked to have its relay running. So frames wait for a node
    that is away, and libzmq finds the next one by itself once that has been asked, too."""

    def __init__(self, path: str, ask: Ask, *, waits_at_close: bool = False) -> None:
        """`path`: of the node's control socket. `waits_at_close`: see transport.pubsub.Sender."""
        self._waits_at_close = waits_at_close
        self._endpoints = Endpoints.below(Path(path).parent)
        self._ask = ask
        self._sender: Sender | None = None
        self._subscribers: list[Subscriber] = []
        self._probing = Probing(self._have_relay)
        self._asking: asyncio.Task[None] | None = None
        self._is_closed = False
        self._refusal = ""  #: why the node has no relay, as it was logged last

    def post(self, frame: bytes) -> bool:
        if self._sender is None:
            if self._is_closed:
                return False
            self._sender = Sender(self._endpoints.publish, has_own_context=self._waits_at_close)
            self._asking = asyncio.get_running_loop().create_task(self.reconnected(), name="events:relay")
        return self._sender.send(frame)

    async def listen(self, receiver: Listener, limit_s: float, *, is_everywhere: bool = False) -> bool:
        """`is_everywhere`: also for what comes from other machines, as far as this machine's relay."""
        subscriber = Subscriber(
            self._endpoints[1:], receiver.prefixes, self._probing.taking(receiver.take), max_frame_bytes=MAX_EVENT_BYTES
        )
        self._subscribers.append(subscriber)
        return await self._probing.heard(subscriber, limit_s, is_everywhere=is_everywhere)

    async def settled(self, limit_s: float) -> bool:
        """Whether, within `limit_s`, all that was published before this call has been taken from the relay."""
        return all([await self._probing.heard(one, limit_s, is_everywhere=True) for one in self._subscribers])

    async def reconnected(self) -> None:
        if self._sender is None and not self._subscribers:
            return
        await self._have_relay()

    async def _have_relay(self, **arguments: Any) -> None:
        try:
            await self._ask("events", **arguments)
        except Unreachable:
            pass  # it is away; it is asked again when it is back
        except CallError as error:
            if error.message != self._refusal:
                self._refusal = error.message
                log.warning("events.no_relay", why=error.message)

    def safety_check(self) -> int:
        return sum(subscriber.safety_check() for subscriber in self._subscribers)

    def stop_listening(self) -> None:
        for subscriber in self._subscribers:
            subscriber.close()
        self._subscribers.clear()

    def close(self) -> None:
        self._is_closed = True
        self.stop_listening()
        if self._asking is not None:
            self._asking.cancel()
        if self._sender is not None:
            self._sender.close()
            self._sender = None
