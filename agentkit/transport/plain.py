"""The plain REQ sockets among an inbox's callers (docs/protocol.md, "Plain requests"): taken in, answered, and drained.

They say neither HELLO nor BYE, nobody can tell them to go elsewhere, and they reconnect by themselves. So a draining inbox goes on
serving them until they pause, and closes in that pause; what comes still later is refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final

from agentkit.clock import now_s
from agentkit.errors import CallError, Draining, Forbidden, TooLarge
from agentkit.observe.log import get_logger
from agentkit.transport.frames import PlainFrame
from agentkit.transport.peer import Inbound, Peer
from agentkit.wire import plain
from agentkit.wire.envelope import Limits

log = get_logger("agentkit.inbox")

#: A draining inbox counts plain callers as quiet when none has asked anything for so long, in seconds.
QUIET_S: Final = 0.25
#: What is kept of the name that a caller gives itself, in characters.
MAX_NAME: Final = 200
#: Addresses whose refusal was logged are remembered, so that each is logged once; so many at most.
MAX_LOGGED: Final = 1000


class PlainCallers:
    """Belongs to an Inbox. `send` gets a routing id and the frames for it, and drops what can't be delivered."""

    def __init__(self, me: object, limits: Limits, send: Callable[[bytes, list[bytes]], None]) -> None:
        self.have_come = False  #: some connection of the inbox may be one that never says BYE
        self.last_name = ""  #: what the last one called itself, or its address
        self.is_shut = False  #: nothing new is taken any more
        self._me = me
        self._limits = limits
        self._send = send
        self._peers: dict[bytes, Peer] = {}  # those with a request under way
        self._last_s = float("-inf")
        self._logged: set[str] = set()

    @property
    def are_busy(self) -> bool:
        """Whether one of them waits for an answer."""
        return bool(self._peers)

    def quiet_in_s(self) -> float:
        """How long they have to go on asking nothing until they count as quiet, in seconds; 0: they do."""
        return max(0.0, self._last_s + QUIET_S - now_s())

    def take(
        self, routing_id: bytes, received: list[bytes], *, is_channel: bool, entry: object = None
    ) -> Inbound | None:
        """A request to be run; None when it was answered here. plain.Unreadable after it was answered so. `entry`: Peer.entry."""
        self.have_come = True
        self._last_s = now_s()
        try:
            if is_channel:
                raise plain.Unreadable("this channel said HELLO: plain requests need a socket of their own")
            asked = plain.parse(received[2] if len(received) == 3 else b"")
        except plain.Unreadable as error:
            self._send(routing_id, [b"", plain.failure(error, error.meta, is_json=error.is_json)])
            raise
        peer = self._peers.get(routing_id) or Peer(routing_id, "", "", self._limits)
        peer.name = str(asked.meta.get("source_agent", ""))[:MAX_NAME]
        peer.entry = entry
        self.last_name = peer.name or (received[1].address if isinstance(received[1], PlainFrame) else "")
        peer.last_id += 1
        inbound = Inbound(peer, peer.last_id, asked.verb, None, asked.meta, b"", [], asked)
        peer.in_flight[inbound.id] = inbound
        self._peers[routing_id] = peer
        header = received[1]
        if isinstance(header, PlainFrame) and not is_this_machine(header.address):
            self._log_refusal(header.address, peer.name)
            self.refuse(
                inbound,
                Forbidden("plain requests are taken from this machine only; from others call with agentkit.Client"),
            )
        elif self.is_shut:
            self.refuse(inbound, Draining(f"{self._me} is stopping"))
        else:
            return inbound
        return None

    def answer(self, inbound: Inbound, value: object) -> None:
        """Send the result; `values.Unsendable` when it does not travel (then nothing was sent: refuse it)."""
        asked = inbound.plain
        assert asked is not None
        reply = plain.success(value, asked.meta, is_json=asked.is_json)
        if len(reply) > self._limits.frame_bytes:
            self.refuse(
                inbound, TooLarge.frame(f"the answer of {inbound.method}", len(reply), self._limits.frame_bytes)
            )
        else:
            self._finish(inbound, reply)

    def refuse(self, inbound: Inbound, error: CallError) -> None:
        """Send `error` as the one answer."""
        asked = inbound.plain
        assert asked is not None
        self._finish(inbound, plain.failure(error, asked.meta, is_json=asked.is_json))

    def _finish(self, inbound: Inbound, reply: bytes) -> None:
        if inbound.is_answered:
            return
        inbound.is_answered = True
        peer = inbound.peer
        del peer.in_flight[inbound.id]
        if not peer.in_flight:
            del self._peers[peer.routing_id]
        self._last_s = now_s()  # whoever got an answer asks again, if it asks again, from now on
        self._send(peer.routing_id, [b"", reply])

    def _log_refusal(self, address: str, name: str) -> None:
        if address not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(address)
            log.warning(
                "plain.refused", address=address, caller=name or "unknown",
                hint="plain REQ sockets are served from this machine only; that caller needs agentkit.Client",
            )  # fmt: skip


def is_this_machine(address: str) -> bool:
    """Whether the other end of a connection is on loopback. An empty address is that of a unix socket."""
    try:
        ip = ipaddress.ip_address(address.removeprefix("::ffff:"))
    except ValueError:
        return not address
    return ip.is_loopback
