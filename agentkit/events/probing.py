"""How a subscriber learns that its relay hears it: it subscribes to a topic that nobody can publish, and has the node send that.

What comes by one way (LOCAL, REMOTE) comes in order. So who has a probe has all that was published before it by that way, and what it
subscribed to before is in force there."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Final

from agentkit.events.topics import END
from agentkit.transport.pubsub import Subscriber

#: The first word of a topic that no event can have.
PROBE: Final = "_probe."
#: What a probe says that came by REMOTE.
FAR: Final = b"far"
#: Pause between two probes, in seconds: first, and at most.
_PAUSE_S: Final = (0.002, 0.1)
_FIRST: Final = PROBE.encode()


class Probing:
    """The probes of one process. Belongs to the running loop."""

    def __init__(self, send: Callable[..., Awaitable[None]]) -> None:
        """`send(probe=, everywhere=)`: have the node send one, by LOCAL or by both ways."""
        self._send = send
        self._waiting: dict[bytes, tuple[asyncio.Event, asyncio.Event]] = {}

    def taking(self, take: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """What takes a subscriber's frames: probes end here."""
        waiting = self._waiting

        def take_all(frame: bytes) -> None:
            if not frame.startswith(_FIRST):
                take(frame)
                return
            probe, _, way = frame.partition(END)
            if (heard := waiting.get(probe)) is not None:
                heard[way == FAR].set()

        return take_all

    async def heard(self, subscriber: Subscriber, limit_s: float, *, is_everywhere: bool = False) -> bool:
        """Whether `subscriber` gets a probe within `limit_s`; `is_everywhere`: by both ways."""
        probe = f"{PROBE}{secrets.token_hex(8)}"
        key = probe.encode()
        near, far = self._waiting[key] = asyncio.Event(), asyncio.Event()
        if not is_everywhere:
            far.set()
        subscriber.subscribe(key + END)
        try:
            await asyncio.wait_for(self._until_heard(probe, near, far), limit_s)
        except TimeoutError:
            return False
        finally:
            if not subscriber.is_closed:
                subscriber.unsubscribe(key + END)
            del self._waiting[key]
        return True

    async def _until_heard(self, probe: str, near: asyncio.Event, far: asyncio.Event) -> None:
        pause_s, longest_s = _PAUSE_S
        is_near_only = far.is_set()
        while not (near.is_set() and far.is_set()):
            await (self._send(probe=probe) if is_near_only else self._send(probe=probe, everywhere=True))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._both(near, far), pause_s)
            pause_s = min(pause_s * 2, longest_s)

    @staticmethod
    async def _both(near: asyncio.Event, far: asyncio.Event) -> None:
        await near.wait()
        await far.wait()
