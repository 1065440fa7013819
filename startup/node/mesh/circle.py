"""Who belongs to the mesh, and what is known of each: the connection to it (Peer) and whether it answers (plan/membership.py)."""

from __future__ import annotations

from typing import Final

from agentkit.clock import now_s
from agentkit.errors import BadRequest
from agentkit.names import is_name
from startup.node.mesh.links import is_far
from startup.node.mesh.peer import MeshTimes, Peer
from startup.plan.membership import Membership, PeerState

#: Machines that one node knows at most: where there are no keys, anybody who reaches it may name some.
MAX_MACHINES: Final = 1_000


class Circle:
    """The other machines, as one node knows them."""

    def __init__(self, life: int, times: MeshTimes) -> None:
        """`life`: this node's incarnation."""
        self.peers: dict[str, Peer] = {}
        self.members = Membership(life, suspect_s=times.suspect_s, unreachable_s=times.unreachable_s)

    # -- who belongs to it

    def peer(self, machine: str) -> Peer:
        """Known from now on, if it was not."""
        peer = self.peers.get(machine)
        if peer is None:
            peer = self.peers[machine] = Peer(machine)
            self.members.expect((machine,), now_s())
        return peer

    def forget(self, peer: Peer) -> None:
        self.peers.pop(peer.machine, None)
        self.members.forget(peer.machine)

    def check_new(self, machine: str) -> None:
        """BadRequest for one that there is no room for, or that can't be a machine."""
        if machine not in self.peers and (len(self.peers) >= MAX_MACHINES or not is_name(machine)):
            raise BadRequest(
                f"no machine {machine[:100]!r} belongs here: the fleet file names them, {MAX_MACHINES} at most"
            )

    # -- what others want to know

    def states(self) -> dict[str, str]:
        return {machine: state.value for machine, state in self.members.states().items()}

    def silent_s(self) -> dict[str, float]:
        """Since when those that are not alive have not answered."""
        now = now_s()
        quiet = (member for member in self.members if member.state is not PeerState.ALIVE)
        return {member.machine: round(now - member.confirmed_s, 1) for member in quiet}

    def numbers(self) -> dict[str, int]:
        """The revisions of the machines that were heard of."""
        return {machine: peer.number for machine, peer in sorted(self.peers.items()) if peer.is_synced or peer.number}

    def revisions(self) -> dict[str, tuple[int, str]]:
        """Number and digest of the revision of every machine that was heard of."""
        return {machine: (peer.number, peer.digest) for machine, peer in sorted(self.peers.items()) if peer.digest}

    def unreachable(self) -> frozenset[str]:
        """Nothing of these can be waited for: silent, or without a node."""
        return frozenset(member.machine for member in self.members if member.is_lost)

    def silent(self) -> frozenset[str]:
        """These machines do not answer at all."""
        return frozenset(member.machine for member in self.members if member.state is PeerState.UNREACHABLE)

    def speaking(self) -> list[str]:
        """The machines that tell of themselves."""
        there = (PeerState.ALIVE, PeerState.SUSPECT)
        return [member.machine for member in self.members if member.life and member.state in there]

    def others(self) -> list[str]:
        """The machines that are there as far as is known, and those that are missed; not those that ended on purpose."""
        return sorted(member.machine for member in self.members if member.state is not PeerState.LEFT)

    # -- what the connections need

    def is_wanted(self, peer: Peer) -> bool:
        """Whether there should be another connection to it than there is."""
        member = self.members.get(peer.machine)
        if member is None or self.peers.get(peer.machine) is not peer:
            return False
        if member.state is PeerState.LEFT:
            return False  # it greets us when it is there again
        return peer.channel is None or (is_far(peer) and member.state is not PeerState.ALIVE)

    def is_sound(self, peer: Peer) -> bool:
        """Whether our connection to one that greets us leads to this life of it, and has not been silent."""
        if peer.channel is None:
            return bool(peer.attempts) and not is_far(peer)
        other = peer.channel.peer
        is_this_life = other is not None and other.incarnation == self.members[peer.machine].life
        return is_this_life and not peer.is_doubtful

    def is_lost(self, machine: str) -> bool:
        """Whether nothing can be asked of it: never heard of, silent, or without a node."""
        return machine not in self.peers or self.members[machine].is_lost
