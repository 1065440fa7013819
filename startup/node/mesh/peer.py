"""How long nodes wait for each other, and what one keeps of the connection to another."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Self

from agentkit.names import AgentId
from agentkit.transport.channel import Channel
from startup.plan.row import AgentRow


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshTimes:
    """Seconds. *Near* is who is reached over loopback: there the end of a process ends its connections, and silence can only be a
    process that hangs. *Far* is everybody else: a link that is cut says nothing."""

    suspect_s: float = 3.0  #: a question has not been answered for so long
    unreachable_s: float = 10.0  #: no question has been answered that left since
    ping_s: float = 5.0  #: between two pings to those that are near; costs 2.6 wake-ups of each side
    beat_s: float = 1.0  #: between two questions to those that are far, and to everybody while somebody is suspect
    dial_s: float = 1.0  #: between two attempts at a connection to one that does not answer: so late it is found again
    give_up_s: float = 6.0  #: an attempt that has come to nothing makes room
    compare_s: float = (
        60.0  #: between two comparisons of rows with those that are near; the far ones do with every beat
    )
    call_s: float = 5.0
    redial_s: tuple[float, float] = (0.1, 5.0)  #: first pause after a near one refused us, doubled up to the last

    def paced(self, suspect_s: float, unreachable_s: float) -> Self:
        """With other limits, and questions often enough for them: three before anybody is suspect."""
        beat_s = min(self.beat_s, suspect_s / 3)
        return replace(
            self,
            suspect_s=suspect_s,
            unreachable_s=unreachable_s,
            ping_s=max(beat_s, min(self.ping_s, unreachable_s / 2)),
            beat_s=beat_s,
            dial_s=min(self.dial_s, beat_s),
        )


@dataclass(slots=True)
class Peer:
    """The connection to one other machine's node, and what goes over it."""

    machine: str
    is_expected: bool = False  #: belongs to the fleet
    configured: str | None = None  #: endpoint by the revision
    told: str | None = None  #: endpoint by its own words, or its node.json
    channel: Channel | None = None
    attempts: dict[Channel, asyncio.TimerHandle] = field(default_factory=dict)  #: with when each is given up
    dials: int = 0
    dialled_s: float = 0.0
    pause_s: float = 0.0
    redial: asyncio.TimerHandle | None = None
    beaten_s: float = 0.0  #: when the last ping or beat left
    compared_s: float = 0.0
    is_synced: bool = False
    is_doubtful: bool = False  #: `channel` has been silent since it was made
    is_behind: bool = False  #: it has to be told everything
    is_sending: bool = False
    pending: dict[AgentId, AgentRow] = field(default_factory=dict)
    number: int = 0  #: its revision
    digest: str = ""
