"""When the other machines are asked for a sign of life, and when their silence is judged: one timer for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.transport.channel import Channel
from startup.node.mesh.links import Links, is_far
from startup.node.mesh.peer import Peer
from startup.plan.membership import Member, Membership, PeerState

#: The loop's timers have a resolution of 1 ms and may come early.
_TIMER_SLACK_S: Final = 0.002


class MeshHeartbeat:
    """Near peers are pinged now and then: the end of their connections tells the rest. Far ones are asked every second."""

    def __init__(
        self,
        members: Membership,
        peers: Mapping[str, Peer],
        links: Links,
        beat: Callable[[Peer, Channel], Coroutine[Any, Any, None]],
        on_judged: Callable[[], None],
    ) -> None:
        self._members = members
        self._peers = peers
        self._links = links
        self._beat = beat
        self._on_judged = on_judged
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def soon(self) -> None:
        """Something has happened after which the next look may be due earlier."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.keep()

    def keep(self) -> None:
        """Have a look when it is due, as long as there is anybody."""
        if self._is_over or not self._peers or self._timer is not None:
            return
        now, times = now_s(), self._links.times
        is_calm = all(self._is_calm(peer) for peer in self._peers.values())
        # in step with everything else on this machine that looks now and then: one wake-up serves several
        period_s = times.ping_s if is_calm else times.beat_s
        at_s = now + period_s - now % period_s
        due_s = self._members.due_s()
        if due_s is not None and not is_calm:
            at_s = min(at_s, max(now, due_s) + _TIMER_SLACK_S)
        self._members.sleeps_until(at_s)
        self._timer = self._loop.call_later(at_s - now, self._look)

    def end(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _is_calm(self, peer: Peer) -> bool:
        state = self._members[peer.machine].state
        return state is PeerState.LEFT or (state is PeerState.ALIVE and not is_far(peer))

    def _look(self) -> None:
        self._timer = None
        now = now_s()
        for peer in tuple(self._peers.values()):
            member = self._members[peer.machine]
            if member.state is not PeerState.LEFT:
                self._hear(peer, now)
                period_s = self._links.times.ping_s if self._is_calm(peer) else self._links.times.beat_s
                if now - peer.beaten_s >= period_s * 0.9:
                    self._ask(peer, member, now)
        self._members.tick(now)
        self._on_judged()
        self.keep()

    def _hear(self, peer: Peer, now: float) -> None:
        """A near one has answered a ping, if it has said anything since."""
        channel = peer.channel
        if channel is None or channel.peer is None or is_far(peer):
            return
        if channel.heard_s >= peer.beaten_s > 0:
            self._members.answered(peer.machine, int(channel.peer.incarnation), channel.heard_s, now)

    def _ask(self, peer: Peer, member: Member, now: float) -> None:
        peer.beaten_s = now
        self._members.asked(peer.machine, now)
        if member.life and member.state is not PeerState.ALIVE:
            self._links.knock(peer)
        if peer.channel is None:
            return
        if is_far(peer) or now - peer.compared_s >= self._links.times.compare_s:
            peer.compared_s = now
            self._links.spawn(self._beat(peer, peer.channel), f"mesh:beat {peer.machine}")
        else:
            peer.channel.ping()
