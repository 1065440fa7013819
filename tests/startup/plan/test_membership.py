"""Who is there: pure. Two machines and a link that loses, doubles, delays and reorders what they say."""

from __future__ import annotations

import heapq
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from startup.plan.membership import Membership, PeerState

SUSPECT_S, UNREACHABLE_S = 3.0, 10.0
ALIVE, SUSPECT, ABSENT = PeerState.ALIVE, PeerState.SUSPECT, PeerState.ABSENT
UNREACHABLE, LEFT = PeerState.UNREACHABLE, PeerState.LEFT


def members(life: int = 1) -> Membership:
    return Membership(life, suspect_s=SUSPECT_S, unreachable_s=UNREACHABLE_S)


def met(now_s: float = 100.0, life: int = 7) -> Membership:
    """m, that has met n."""
    m = members()
    m.expect(["n"], now_s)
    m.asked("n", now_s)
    m.answered("n", life, now_s, now_s)
    m.changes()
    return m


def at(m: Membership, now_s: float) -> PeerState:
    m.tick(now_s)
    return m["n"].state


def test_an_unanswered_question_makes_suspect_then_unreachable_and_an_answer_alive() -> None:
    m = met()
    assert at(m, 150.0) is ALIVE, "nothing was asked"
    m.asked("n", 150.0)
    m.asked("n", 151.0)
    assert (at(m, 152.9), at(m, 153.0)) == (ALIVE, UNREACHABLE)  # nothing has been confirmed since 100
    m.asked("n", 160.0)
    m.answered("n", 7, 160.0, 160.1)
    assert at(m, 160.2) is ALIVE
    m.asked("n", 161.0)
    assert [at(m, 161.0 + s) for s in (2.9, 3.0, 8.9, 9.0)] == [ALIVE, SUSPECT, SUSPECT, UNREACHABLE]
    assert m.changes() == ["n"]


def test_an_answer_that_was_under_way_for_long_proves_only_what_was() -> None:
    m = met()
    m.asked("n", 101.0)
    assert at(m, 104.0) is SUSPECT
    m.answered("n", 7, 101.0, 108.0)
    assert at(m, 108.0) is SUSPECT
    assert (at(m, 110.9), at(m, 111.0)) == (SUSPECT, UNREACHABLE)


def test_whom_we_hear_but_who_does_not_hear_us_is_as_far_away_as_a_silent_one() -> None:
    m = met()
    for second in range(1, 12):
        m.asked("n", 100.0 + second)
        m.word("n", (7, 1000 * second), (1, 100_000), 100.0 + second)  # its words say that ours end at 100
        m.tick(100.0 + second)
    assert m["n"].state is UNREACHABLE


def test_a_word_that_knows_our_newest_reading_is_as_good_as_an_answer() -> None:
    m = met()
    for second in range(1, 20):
        m.asked("n", 100.0 + second)
        assert m.word("n", (7, 1000 * second), m.reading(100.0 + second - 0.5), 100.0 + second)
        assert at(m, 100.0 + second) is ALIVE


def test_readings_of_another_life_of_ours_or_from_the_future_prove_nothing() -> None:
    m = met()
    m.asked("n", 101.0)
    m.word("n", (7, 5), (99, 103_000), 103.0)
    m.word("n", (7, 6), (1, 900_000), 103.0)
    assert at(m, 104.0) is SUSPECT


def test_a_machine_that_answers_without_its_node_is_absent_until_it_is_silent_too() -> None:
    m = met()
    m.asked("n", 101.0)
    m.broke("n")
    assert m["n"].state is SUSPECT
    m.there("n", 109.0)
    assert at(m, 110.0) is ABSENT
    m.there("n", 115.0)
    assert (at(m, 124.9), at(m, 125.0)) == (ABSENT, UNREACHABLE)
    m.there("n", 126.0)
    assert at(m, 127.0) is UNREACHABLE, "it was switched off meanwhile: what ran there does not run any more"


def test_what_an_earlier_life_says_is_not_heard() -> None:
    m = met(life=7)
    assert m.word("n", (8, 1), None, 101.0)
    assert m["n"].generation == 2
    assert not m.word("n", (7, 50_000), None, 102.0)
    assert not m.greeted("n", 7, 102.0)
    m.left("n", 7, 103.0)
    assert m["n"].state is ALIVE
    m.asked("n", 104.0)
    m.answered("n", 3, 104.0, 104.1)  # its disk was lost: it counts anew, and answers where we called
    assert (m["n"].life, m["n"].generation) == (3, 3)


def test_who_left_on_purpose_stays_away_until_the_next_life() -> None:
    m = met(life=7)
    m.asked("n", 101.0)
    m.left("n", 7, 101.0)
    assert at(m, 500.0) is LEFT
    assert not m.word("n", (7, 9), m.reading(500.0), 500.0), "said before its last words, arrived after them"
    m.answered("n", 7, 101.0, 501.0)
    assert m["n"].state is LEFT
    assert m.greeted("n", 8, 501.0)
    assert m["n"].state is ALIVE


def test_who_was_stopped_itself_blames_nobody() -> None:
    m = met()
    m.asked("n", 101.0)
    m.sleeps_until(102.0)
    assert at(m, 150.0) is ALIVE
    assert (at(m, 151.9), at(m, 152.0)) == (ALIVE, SUSPECT)


def test_a_machine_that_never_came_is_unreachable_after_its_time() -> None:
    m = members()
    m.expect(["n"], 100.0)
    assert (at(m, 109.9), at(m, 110.0)) == (ALIVE, UNREACHABLE)


class Side:
    """One machine of the simulation: what it would do about what it sees is Mesh's; here it only beats."""

    def __init__(self, name: str, other: str, life: int) -> None:
        self.name, self.other = name, other
        self.start(life, 0.0)

    def start(self, life: int, now_s: float) -> None:
        self.members = members(life)
        self.members.expect([self.other], now_s)

    @property
    def sees(self) -> PeerState:
        return self.members[self.other].state


class World:
    """Two sides, a link for each direction, and a clock."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.sides = {"m": Side("m", "n", 1), "n": Side("n", "m", 1)}
        self.now_s = 0.0
        self.loss = {"m": 0.0, "n": 0.0}  #: of what this one sends
        self.delay_s = 0.05
        self._late: list[tuple[float, int, str, dict[str, Any]]] = []
        self._count = 0

    def run(self, seconds: float) -> None:
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.now_s += 0.25
            while self._late and self._late[0][0] <= self.now_s:
                _, _, to, word = heapq.heappop(self._late)
                self.sides[to].members.word(**word, now_s=self.now_s)
            for side in self.sides.values():
                if self.now_s % 1.0 == 0.0:
                    side.members.asked(side.other, self.now_s)
                    self._say(side)
                side.members.tick(self.now_s)

    def _say(self, side: Side) -> None:
        word = {
            "machine": side.name,
            "said": side.members.reading(self.now_s),
            "echo": side.members.echo(side.other),
        }
        for _ in range(self.random.choice((1, 1, 2))):
            if self.random.random() >= self.loss[side.name]:
                at_s = self.now_s + self.random.uniform(0.0, 2 * self.delay_s)
                self._count += 1
                heapq.heappush(self._late, (at_s, self._count, side.other, word))


losses = st.fixed_dictionaries({"m": st.floats(0.0, 1.0), "n": st.floats(0.0, 1.0)})


@given(
    st.integers(0, 2**32),
    st.lists(st.tuples(losses, st.floats(0.0, 3.0), st.floats(0.5, 30.0), st.sampled_from(["", "m", "n"])), max_size=6),
)
def test_both_sides_come_to_the_same_view_whatever_was_before(seed: int, past: list[Any]) -> None:
    world = World(seed)
    life = 1
    for loss, delay_s, seconds, restarted in past:
        world.loss, world.delay_s = loss, delay_s
        if restarted:
            life += 1
            world.sides[restarted].start(life, world.now_s)
        world.run(seconds)
    world.loss, world.delay_s = {"m": 0.0, "n": 0.0}, 0.05
    world.run(9.0)  # what was on its way is there, and both were asked and answered
    assert {side.sees for side in world.sides.values()} == {ALIVE}
    world.loss[world.random.choice("mn")] = 1.0
    world.run(UNREACHABLE_S + 2.0)
    assert {side.sees for side in world.sides.values()} == {UNREACHABLE}
