"""The publishing side without sockets: checks, numbers and packs events, then hands frames over."""

from __future__ import annotations

from collections.abc import Callable

from agentkit.clock import wall_s
from agentkit.errors import BadRequest
from agentkit.events.delivery import encode
from agentkit.events.registry import Event, checked
from agentkit.wire import values


class Publisher:
    """What one agent or script publishes. Belongs to one thread."""

    def __init__(self, name: str, life: int, post: Callable[[bytes], bool]) -> None:
        """`post` hands a frame over and says whether there was room for it; `life`: see events.delivery."""
        self.dropped = 0  #: numbered, but there was no room: subscribers see a gap
        self.published = 0
        self.by_topic: dict[str, int] = {}  #: bounded: only topics that have a type are published
        self._name = name
        self._life = life
        self._post = post
        self._packer = values.Packer()

    def publish(self, topic: str, payload: object) -> None:
        """Check it and send it. BadRequest, TooLarge: it was not sent and has no number."""
        self.send(topic, checked(topic, payload))

    def send(self, topic: str, event: Event) -> None:
        """What was checked already (`registry.checked`, which any thread may do)."""
        number = self.by_topic.get(topic, 0) + 1
        try:
            frame = encode(self._packer, topic, self._name, self._life, number, wall_s(), event)
        except values.Unsendable as exc:
            raise BadRequest(f"{topic}: {exc}", details={"topic": topic}) from exc
        self.by_topic[topic] = number
        self.published += 1
        if not self._post(frame):
            self.dropped += 1
