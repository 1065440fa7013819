"""What a HELLO is answered with: WELCOME, a refusal, or GOAWAY. Decided here without sockets; the inbox sends it."""

from __future__ import annotations

from typing import Final

from agentkit.errors import CallError, Overloaded, Unauthenticated, UnsupportedVersion
from agentkit.transport.answers import error_frame
from agentkit.transport.peer import Identity, Peer
from agentkit.wire import codec, shared
from agentkit.wire import envelope as ak
from agentkit.wire.envelope import AK1_VERSION, Limits

#: Channels that may be open at once; a HELLO above that is refused, so that strangers can't fill the memory.
MAX_PEERS: Final = 20_000
#: What is kept of the names that a caller gives itself, in characters.
MAX_NAME: Final = 200


def turned_down(me: Identity, hello: ak.Hello, *, channels: int, is_revoked: bool, is_leaving: bool) -> bytes | None:
    """The one frame that sends its sender away; None: it is welcome.

    `channels`: those that are open. `is_revoked`: it came in with a key that is nobody's any more. `is_leaving`: this inbox drains, and
    no call undoes that."""
    refusal: CallError | None = None
    if is_revoked:
        refusal = Unauthenticated(f"{me.id}: your key was revoked")
    elif hello.version != AK1_VERSION:
        refusal = UnsupportedVersion(f"AK1 version {hello.version} is not spoken here, {AK1_VERSION} is")
    elif channels >= MAX_PEERS:
        refusal = Overloaded(f"{MAX_PEERS:,} channels are open", details={"retry_after_ms": 1000})
    if refusal is not None:
        return error_frame(0, refusal)
    if is_leaving:
        return codec.encode(ak.GoAway("stopping", 0))
    if hello.incarnation not in (0, me.incarnation):
        return codec.encode(ak.GoAway("another incarnation", 0))
    return None


def introduced(routing_id: bytes, hello: ak.Hello) -> Peer:
    """Who said `hello`, as far as it can be believed."""
    return Peer(routing_id, hello.name[:MAX_NAME], hello.instance[:MAX_NAME], hello.limits, hello.capabilities)


def welcome(me: Identity, limits: Limits) -> bytes:
    """The frame with which its channel begins."""
    capabilities = (ak.BATCHES, *shared.capability())
    return codec.encode(ak.Welcome(AK1_VERSION, me.id.name, str(me.id), me.incarnation, capabilities, limits))
