"""How a subscriber that was woken gets what its node has kept for it: in order, nothing twice, and what is missing counted.

    falling asleep   the node listens, too -> it is heard -> all that was published before has come to the subscriber -> that notes what it
                     has seen of each stream, and stops listening
    waking           the subscriber listens, and holds back what comes -> it is heard -> the node takes what is on its way to it, stops
                     listening and hands over -> all that was published before has come -> what was kept, then what was held back

At every moment one of the two is heard, and neither stops before it has what only it was sent, so nothing slips through; what both have
got is known by its number (events.gaps).
Imported by those alone that were woken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from agentkit.errors import CallError
from agentkit.events.delivery import Delivery, decode, readable_topic, topic_in
from agentkit.events.receiver import Receiver
from agentkit.events.route import RelayRoute
from agentkit.observe.log import get_logger
from agentkit.wire import values

log = get_logger("agentkit.events")

#: Held back while the kept ones are fetched; what finds no room is lost, and shows as a gap.
MAX_HELD: Final = 4_096

#: Fetches one page of events.mailbox.Mailbox: `fetch(offset=)`.
Fetch = Callable[..., Awaitable[Mapping[str, Any]]]


def event_of(frame: bytes) -> Delivery | None:
    """What a frame holds; None: it is no event."""
    topic = readable_topic(topic_in(frame))
    if topic is None:
        return None
    try:
        return decode(topic, frame)
    except values.Undecodable:
        return None


class CatchUp:
    """Stands before a receiver until what was kept has been handed over. A `route.Listener`."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._held: list[bytes] | None = []

    @property
    def prefixes(self) -> list[bytes]:
        return self._receiver.prefixes

    def take(self, frame: bytes) -> None:
        if self._held is None:
            self._receiver.take(frame)
        elif len(self._held) < MAX_HELD:
            self._held.append(frame)

    def finish(self, kept: Iterable[bytes], dropped: Iterable[tuple[str, str, int, int, int]]) -> None:
        """The receiver gets what it has not had: `kept`, and what came meanwhile. `dropped`: publisher, topic, life, first and last
        number of what the node had no room for."""
        held, self._held = self._held or [], None
        for frame in kept:
            self._take_once(frame)
        for publisher, topic, life, first, last in dropped:
            self._receiver.lost += self._receiver.gaps.lost(publisher, topic, life, first, last)
        for frame in held:
            self._take_once(frame)

    def _take_once(self, frame: bytes) -> None:
        event = event_of(frame)
        if event is None or not self._receiver.gaps.knows(event.publisher, event.topic, event.life, event.number):
            self._receiver.take(frame)


async def catch_up(route: RelayRoute, receiver: Receiver, fetch: Fetch, limit_s: float) -> bool:
    """Listen, after what was kept. Whether the subscription is in force within `limit_s`."""
    before = CatchUp(receiver)
    is_heard = await route.listen(before, limit_s, is_everywhere=True)
    frames: list[bytes] = []
    dropped: list[tuple[str, str, int, int, int]] = []
    offset: int | None = 0
    try:
        while offset is not None:
            page = await fetch(offset=offset)
            frames += page["frames"]
            dropped += [tuple(numbers) for numbers in page["dropped"]]
            offset = page["next"]
        if frames:
            await route.settled(limit_s)
    except CallError as error:  # what it kept shows as a gap
        log.warning("events.not_handed_over", why=error.message)
    before.finish(frames, dropped)
    if frames or dropped:
        log.info("events.handed_over", events=len(frames), lost=receiver.lost)
    return is_heard
