"""The publishing side without sockets: checks, numbers and packs events, then hands frames over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from agentkit.clock import now_s, wall_s
from agentkit.errors import BadRequest
from agentkit.events.delivery import encode
from agentkit.events.registry import Event, checked
from agentkit.wire import values

#: How long a publisher that is faster than its relay waits for room, in seconds. A relay that took nothing for so long is away:
#: from then on events are dropped at once, until it takes one again.
PATIENCE_S: Final = 0.1
#: Pause between two tries, in seconds.
_TRY_AGAIN_S: Final = 0.001
#: A publisher that never waits lets others run after so many events.
_AT_ONCE: Final = 64


class Publisher:
    """What one agent or script publishes. Belongs to one event loop."""

    def __init__(self, name: str, life: int, post: Callable[[bytes], bool]) -> None:
        """`post` hands a frame over and says whether there was room for it; `life`: see events.delivery."""
        self.dropped = 0  #: numbered, but there was no room: subscribers see a gap
        self.published = 0
        self.by_topic: dict[str, int] = {}  #: bounded: only topics that have a type are published
        self._name = name
        self._life = life
        self._post = post
        self._packer = values.Packer()
        self._turn = asyncio.Lock()
        self._queued = 0
        self._is_away = False

    async def publish(self, topic: str, payload: object) -> None:
        """Check it and send it. BadRequest, TooLarge: it was not sent and has no number."""
        await self.send(topic, checked(topic, payload))

    async def send(self, topic: str, event: Event) -> None:
        """What was checked already (`registry.checked`, which any thread may do)."""
        frame = self._numbered(topic, event)
        if self._queued or not self._post(frame):
            await self._send_in_turn(frame)
        if self.published % _AT_ONCE == 0:
            await asyncio.sleep(0)

    def _numbered(self, topic: str, event: Event) -> bytes:
        number = self.by_topic.get(topic, 0) + 1
        try:
            frame = encode(self._packer, topic, self._name, self._life, number, wall_s(), event)
        except values.Unsendable as exc:
            raise BadRequest(f"{topic}: {exc}", details={"topic": topic}) from exc
        self.by_topic[topic] = number
        self.published += 1
        return frame

    async def _send_in_turn(self, frame: bytes) -> None:
        """One after another: an event that overtook another would look like a gap."""
        self._queued += 1
        is_sent = False
        try:
            async with self._turn:
                is_sent = await self._sent(frame)
        finally:
            self._queued -= 1
            self.dropped += not is_sent

    async def _sent(self, frame: bytes) -> bool:
        ends_s = now_s() + (0.0 if self._is_away else PATIENCE_S)
        while not self._post(frame):
            if now_s() >= ends_s:
                self._is_away = True
                return False
            await asyncio.sleep(_TRY_AGAIN_S)
        self._is_away = False
        return True
