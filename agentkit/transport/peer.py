"""Who is at the other end, as the inbox knows it, and one request of theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from zmq import MessageTracker

from agentkit.names import AgentId, Incarnation
from agentkit.transport.batch import BATCH_FRAME_BYTES
from agentkit.transport.streams import Incoming, Window
from agentkit.wire.envelope import AK1_VERSION, BATCHES, READS_ONLY_IN_CALLS, Hello, Limits, Meta
from agentkit.wire.flat import Buffer
from agentkit.wire.plain import PlainRequest
from agentkit.wire.shared import may_share


class Identity(NamedTuple):
    """What a side says of itself in HELLO and WELCOME. Scripts have an id too; their incarnation is 0."""

    id: AgentId
    incarnation: Incarnation = Incarnation(0)

    def hello(self, expected: Incarnation, limits: Limits, capabilities: tuple[str, ...] = ()) -> Hello:
        return Hello(AK1_VERSION, self.id.name, str(self.id), expected, capabilities, limits)


class Peer:
    """One channel into the inbox (or one plain REQ socket)."""

    __slots__ = (
        "backlog",
        "backlog_bytes",
        "entry",
        "held",
        "in_flight",
        "instance",
        "kept",
        "last_id",
        "limits",
        "may_batch",
        "may_share",
        "moved_s",
        "name",
        "routing_id",
        "says_bye",
        "sent_away",
    )

    def __init__(
        self,
        routing_id: bytes,
        name: str,
        instance: str,
        limits: Limits,
        capabilities: tuple[str, ...] = (),
    ) -> None:
        self.routing_id = routing_id
        self.name = name
        self.instance = instance
        self.limits = limits
        self.entry: Any = None  #: door.Entry: the key that it came in with; None: with none
        self.says_bye = READS_ONLY_IN_CALLS not in capabilities
        self.sent_away = False  #: it was told GOAWAY: whatever it asks from then on is not run here
        self.may_batch = BATCHES in capabilities and limits.frame_bytes >= BATCH_FRAME_BYTES
        self.may_share = may_share(capabilities)
        self.in_flight: dict[int, Inbound] = {}
        self.kept: dict[int, object] = {}  #: shared memory of answers that it has not taken yet, by their ids
        self.last_id = 0  #: highest request id seen; GOAWAY states it
        self.backlog: deque[Sequence[Buffer]] = deque()  #: what its full queue did not take yet
        self.backlog_bytes = 0
        self.moved_s = 0.0  #: when something of the backlog last went
        self.held: deque[tuple[MessageTracker, int]] = (
            deque()
        )  #: large messages that libzmq may hold, and their sizes in bytes

    def __repr__(self) -> str:
        return f"<peer {self.instance or self.routing_id.hex()}: {len(self.in_flight)} in flight>"


class Inbound:
    """One request on its way to a handler. Answered exactly once, by `Inbox.answer` or `Inbox.refuse`."""

    __slots__ = (
        "attachments", "body", "budget_ms", "flags", "id", "incoming", "is_answered", "meta", "method", "peer", "plain", "window",
        "work",
    )  # fmt: skip

    def __init__(
        self,
        peer: Peer,
        id: int,
        method: str,
        budget_ms: int | None,
        meta: Meta,
        body: bytes,
        attachments: Sequence[Buffer],
        plain: PlainRequest | None = None,
        flags: int = 0,
    ) -> None:
        self.peer = peer
        self.id = id
        self.method = method
        self.budget_ms = budget_ms  #: None: a plain caller, the method's default counts
        self.meta = meta
        self.body = body
        self.attachments = attachments
        self.plain = plain
        self.flags = flags
        self.incoming: Incoming | None = None  #: what the caller streams
        self.window: Window | None = None  #: the caller's credit for what is streamed to it
        self.is_answered = False
        self.work: Any = None  #: whatever the dispatcher hangs here to be able to cancel
