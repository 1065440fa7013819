"""Who of the other machines is there, as one node sees it. Pure: words and a time in, states out.

What counts is the round trip. Every word carries its sender's clock and the newest clock reading of ours that the sender has seen,
so whoever hears one learns when at the latest both ways worked: a machine that we hear but that does not hear us is as far away as
one that is silent, and both come to that view by themselves. Clocks are only ever compared with their own readings.

    ALIVE ──► SUSPECT     a question stands unanswered for `suspect_s`, or the connection to a near one ended
    SUSPECT ──► UNREACHABLE   no round trip for `unreachable_s`
    SUSPECT ──► ABSENT        the same, but the machine itself answered within `suspect_s`: it is there, its node is not
    any ──► ALIVE         a round trip that is younger than `suspect_s`
    any ──► LEFT          it said that it ends on purpose; only its next life changes that

Of two lives of one machine's node the one with the greater number counts; what another says is not heard, however late it
arrives. Only a round trip over a connection that we made beats the number: a machine that lost its disk counts from 1 again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: A look that comes so much too late, in parts of `suspect_s`, says that we were stopped ourselves; the others can't help that.
OVERSLEPT: Final = 0.5

#: (life, its clock in ms): what words carry of each side.
Reading = tuple[int, int]


class PeerState(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    ABSENT = "absent"  #: the machine answers, its node does not: agents may well run there
    UNREACHABLE = "unreachable"
    LEFT = "left"


@dataclass(slots=True)
class Member:
    """What is known of one other machine. Times are ours, in seconds."""

    machine: str
    confirmed_s: float  #: when the question left that was the last to be answered; at first: when we began to expect it
    state: PeerState = PeerState.ALIVE
    life: int = 0  #: of its node; 0: never met
    generation: int = 0  #: grows with each change of `life`
    asked_s: float | None = None  #: when the first question left since then
    last_asked_s: float = 0.0
    there_s: float | None = None  #: when the machine itself last answered in its node's stead
    heard: Reading | None = None  #: its newest clock reading that we know

    @property
    def is_lost(self) -> bool:
        """Nothing of it can be waited for."""
        return self.state in (PeerState.ABSENT, PeerState.UNREACHABLE)


class Membership:
    """One node's view. `tick` at `due_s`, or whenever convenient; `changes` has what came of everything since it was asked last."""

    def __init__(self, life: int, *, suspect_s: float, unreachable_s: float) -> None:
        self.life = life
        self.suspect_s = suspect_s
        self.unreachable_s = unreachable_s
        self._members: dict[str, Member] = {}
        self._changes: dict[str, None] = {}
        self._due_s: float | None = None

    def __getitem__(self, machine: str) -> Member:
        return self._members[machine]

    def get(self, machine: str) -> Member | None:
        return self._members.get(machine)

    def __contains__(self, machine: str) -> bool:
        return machine in self._members

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    # -- what happens

    def expect(self, machines: Iterable[str], now_s: float) -> None:
        """These belong to the fleet: their silence is news from now on."""
        for machine in machines:
            if machine not in self._members:
                self._members[machine] = Member(machine, confirmed_s=now_s)

    def forget(self, machine: str) -> None:
        self._members.pop(machine, None)
        self._changes.pop(machine, None)

    def asked(self, machine: str, now_s: float) -> None:
        """A question to it has left."""
        member = self._members[machine]
        member.last_asked_s = now_s
        if member.asked_s is None:
            member.asked_s = now_s

    def answered(self, machine: str, life: int, sent_s: float, now_s: float) -> None:
        """A question that left at `sent_s` came back over a connection that we made, by this life."""
        member = self._members[machine]
        if life != member.life:
            self._meet(member, life)
        elif member.state is PeerState.LEFT:
            return  # an answer that its last words have overtaken
        self._confirm(member, sent_s, now_s)

    def greeted(self, machine: str, life: int, now_s: float) -> bool:
        """It made a connection to us, and so has heard us just now; whether that is its life that counts."""
        self.expect((machine,), now_s)
        member = self._members[machine]
        if life < member.life or (life == member.life and member.state is PeerState.LEFT):
            return False
        if life > member.life:
            self._meet(member, life)
        self._confirm(member, now_s, now_s)
        return True

    def word(self, machine: str, said: Reading, echo: Reading | None, now_s: float) -> bool:
        """A word of the life `said[0]`, over whatever connection; whether it counts. `echo`: our reading that it knows."""
        life, at_ms = said
        self.expect((machine,), now_s)
        member = self._members[machine]
        if life < member.life or (life == member.life and member.state is PeerState.LEFT):
            return False
        if life > member.life:
            self._meet(member, life)
        if member.heard is None or member.heard[1] < at_ms:
            member.heard = (life, at_ms)
        if echo is not None and echo[0] == self.life and echo[1] / 1000 <= now_s:
            self._confirm(member, echo[1] / 1000, now_s)
        return True

    def broke(self, machine: str) -> None:
        """The connection to a near one ended, which its process did."""
        member = self._members[machine]
        if member.state is PeerState.ALIVE:
            self._to(member, PeerState.SUSPECT)

    def there(self, machine: str, now_s: float) -> None:
        """The machine itself answered, whatever its node does: it refused a connection, or its kernel took one."""
        self._members[machine].there_s = now_s

    def left(self, machine: str, life: int, now_s: float) -> None:
        """Its last words."""
        self.expect((machine,), now_s)
        member = self._members[machine]
        if life >= member.life:
            member.life = life
            self._to(member, PeerState.LEFT)

    # -- what follows

    def reading(self, now_s: float) -> Reading:
        """What our words carry of ourselves."""
        return self.life, int(now_s * 1000)

    def echo(self, machine: str) -> Reading | None:
        """What our words to it carry of it."""
        member = self._members.get(machine)
        return member.heard if member is not None else None

    def tick(self, now_s: float) -> None:
        """Judge silence."""
        if self._due_s is not None and now_s - self._due_s > self.suspect_s * OVERSLEPT:
            self._excuse(now_s - self._due_s)
        self._due_s = None
        for member in self._members.values():
            self._judge(member, now_s)

    def sleeps_until(self, due_s: float) -> None:
        """When `tick` comes next; much later means that we were stopped meanwhile."""
        self._due_s = due_s

    def due_s(self) -> float | None:
        """When silence may next turn into something."""
        return min(
            (at_s for member in self._members.values() if (at_s := self._next_s(member)) is not None), default=None
        )

    def changes(self) -> list[str]:
        """The machines whose state is another than when this was asked last."""
        changed, self._changes = list(self._changes), {}
        return changed

    def states(self) -> dict[str, PeerState]:
        return {machine: member.state for machine, member in sorted(self._members.items())}

    def _meet(self, member: Member, life: int) -> None:
        member.life = life
        member.generation += 1
        member.heard = None
        if member.state is PeerState.LEFT:
            self._to(member, PeerState.SUSPECT)

    def _confirm(self, member: Member, sent_s: float, now_s: float) -> None:
        if member.last_asked_s <= sent_s:
            member.asked_s = None
        elif sent_s > member.confirmed_s:  # an echo that we have had before says nothing new
            member.asked_s = member.last_asked_s
        member.confirmed_s = max(member.confirmed_s, sent_s)
        if now_s - sent_s < self.suspect_s:
            member.there_s = None
            self._to(member, PeerState.ALIVE)

    def _judge(self, member: Member, now_s: float) -> None:
        at_s = self._next_s(member)
        if at_s is None or now_s < at_s:
            return
        if member.state is PeerState.ALIVE and member.life:
            self._to(member, PeerState.SUSPECT)
            self._judge(member, now_s)
        elif member.state is PeerState.ABSENT:
            self._to(member, PeerState.UNREACHABLE)
        else:
            is_absent = member.there_s is not None and now_s - member.there_s < self.suspect_s
            self._to(member, PeerState.ABSENT if is_absent else PeerState.UNREACHABLE)

    def _next_s(self, member: Member) -> float | None:
        """When silence turns this one's state into the next."""
        match member.state:
            case PeerState.ALIVE if member.life:
                return None if member.asked_s is None else member.asked_s + self.suspect_s
            case PeerState.ALIVE | PeerState.SUSPECT:
                return member.confirmed_s + self.unreachable_s
            case PeerState.ABSENT:
                return None if member.there_s is None else member.there_s + self.unreachable_s
            case _:
                return None

    def _excuse(self, slept_s: float) -> None:
        for member in self._members.values():
            if not member.is_lost:
                member.confirmed_s += slept_s
                if member.asked_s is not None:
                    member.asked_s += slept_s
                    member.last_asked_s += slept_s

    def _to(self, member: Member, state: PeerState) -> None:
        if member.state is not state:
            member.state = state
            self._changes[member.machine] = None
