"""The door of an inbox with keys: who a caller is, who was turned away, and how somebody is put out whose key was revoked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import zmq

from agentkit.clock import now_s
from agentkit.observe.log import get_logger
from agentkit.security.ring import Keyring
from agentkit.security.roles import Holder
from agentkit.transport import context, curve
from agentkit.transport.strikes import reach

log = get_logger("agentkit.inbox")

#: Those who are turned away are logged at most so often, in seconds, with their number.
COMPLAIN_EVERY_S: Final = 1.0

_REASONS: Final = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "a key that is not known here",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "no CURVE, or another server key",
}


class Entry(NamedTuple):
    """How a peer came in."""

    public: str  #: its key
    descriptor: int  #: of its connection, in libzmq's hands; the number may be another's by now
    address: Any  #: at the other end, by which that is seen


class Door:
    """One inbox's. Belongs to the running loop."""

    def __init__(self, sock: zmq.Socket[Any], ring: Keyring, on_change: Callable[[], None]) -> None:
        """`on_change`: keys came or went, so peers may be somebody else, or nobody."""
        self.ring = ring
        self.turned_away = 0
        self._sock = sock
        self._domain = curve.Doorkeeper.let_in(context.context(), ring)
        self._context = context.context()
        self._forget = ring.on_change(on_change)
        self._complained_s = float("-inf")

    def encrypted(self) -> AbstractContextManager[None]:
        """What is bound within takes only those who are known."""
        return curve.serving(self._sock, self.ring.own, self._domain)

    def entry(self, header: zmq.Frame | None) -> Entry | None:
        """How who sent `header` came in; None: by an address without encryption."""
        public = _user(header)
        if header is None or not public:
            return None
        descriptor = int(header.get(zmq.SRCFD))
        return Entry(public, descriptor, reach(descriptor))

    def holder(self, entry: Entry | None) -> Holder | None:
        """Whose key it is now; None: nobody's."""
        return self.ring.holder(entry.public) if entry is not None else None

    def is_still(self, entry: Entry, header: zmq.Frame | None) -> bool:
        """Whether `header` was sent by the same key, and that key is still known. (Who comes after somebody may have chosen
        the routing id that they had.)"""
        return _user(header) == entry.public and self.ring.holder(entry.public) is not None

    def put_out(self, entry: Entry) -> None:
        """End the connection, if it is still the same one."""
        if entry.address is not None:
            reach(entry.descriptor, cut_if=entry.address)

    def note(self, event: int) -> None:
        """One of monitor.TURNED_AWAY."""
        self.turned_away += 1
        now = now_s()
        if now - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now
            log.warning(
                "inbox.turned_away", why=_REASONS.get(event, "it went during the handshake"), total=self.turned_away
            )

    def close(self) -> None:
        self._forget()
        curve.Doorkeeper.end(self._context, self._domain)


def _user(header: zmq.Frame | None) -> str:
    try:
        return str(header.get("User-Id")) if header is not None else ""
    except zmq.ZMQError:  # a connection without encryption has none
        return ""
