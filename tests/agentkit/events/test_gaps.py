from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.events.gaps import Gaps


@given(st.sets(st.integers(1, 200), min_size=1))
def test_what_lies_between_the_first_and_the_last_that_arrived_is_counted_once(numbers: set[int]) -> None:
    arrived = sorted(numbers)
    gaps = Gaps()
    missed = sum(gaps.missed("m/P", "t", 1, number) for number in arrived)
    assert missed == arrived[-1] - arrived[0] + 1 - len(arrived)


def test_who_comes_late_has_lost_nothing() -> None:
    assert Gaps().missed("m/P", "t", 1, 1000) == 0


def test_each_topic_and_publisher_is_counted_by_itself() -> None:
    gaps = Gaps()
    assert [gaps.missed(who, topic, 1, n) for who in "PQ" for topic in "ab" for n in (1, 2, 4)] == [0, 0, 1] * 4


def test_a_new_life_of_a_publisher_counts_from_one() -> None:
    gaps = Gaps()
    gaps.missed("P", "t", 1, 7)
    assert gaps.missed("P", "t", 2, 1) == 0
    assert gaps.missed("P", "t", 3, 4) == 3


def test_two_lives_that_overlap_in_a_roll_are_no_gap() -> None:
    gaps = Gaps()
    seen = [(1, 5), (2, 1), (1, 6), (2, 2), (1, 7), (2, 3)]
    assert [gaps.missed("P", "t", life, number) for life, number in seen] == [0] * 6
    assert gaps.missed("P", "t", 1, 9) == 1


def test_what_arrives_twice_or_late_is_no_gap() -> None:
    gaps = Gaps()
    assert [gaps.missed("P", "t", 1, number) for number in (3, 3, 2, 4)] == [0, 0, 0, 0]


@given(st.lists(st.tuples(st.sampled_from("PQRST"), st.integers(1, 3), st.integers(1, 9)), max_size=200))
def test_however_many_publishers_there_are_the_memory_is_bounded(seen: list[tuple[str, int, int]]) -> None:
    gaps = Gaps(max_streams=4)
    for n, (who, life, number) in enumerate(seen):
        assert 0 <= gaps.missed(who, f"t{n % 7}", life, number) < number
        assert len(gaps._last) <= 4
        assert len(gaps._newest) <= 4
