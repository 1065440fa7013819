"""What a node knows of another one, and how long it waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from agentkit.names import AgentId
from agentkit.transport.channel import Channel
from startup.plan.row import AgentRow


class PeerState(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshTimes:
    """Seconds. An end of the connection makes a peer suspect at once; the rest is for hanging nodes and cut links."""

    ping_s: float = 5.0  #: at rest; costs 2.6 wake-ups of each side
    suspect_s: float = 3.0  #: a ping has not been answered for so long
    look_s: float = 1.0  #: between two looks (and pings) while somebody is suspect
    unreachable_s: float = 10.0  #: nothing was heard for so long
    call_s: float = 5.0
    redial_s: tuple[float, float] = (0.1, 5.0)  #: first pause, doubled up to the last


@dataclass(slots=True)
class Peer:
    """What is known of one other machine."""

    machine: str
    heard_s: float
    pinged_s: float = 0.0  #: when the first ping was sent that nothing has been heard since
    state: PeerState = PeerState.ALIVE
    number: int = 0
    endpoint: str | None = None
    channel: Channel | None = None
    is_synced: bool = False
    said_bye: bool = False
    pending: dict[AgentId, AgentRow] = field(default_factory=dict)
    is_sending: bool = False
    pause_s: float = 0.0
    redial: asyncio.TimerHandle | None = None
