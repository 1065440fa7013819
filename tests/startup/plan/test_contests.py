"""Who leads on one machine: whatever happens in whatever order, no two at a time, and fences only grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.names import AgentId, Incarnation
from startup.plan.contests import Candidate, Contests, Elected, Lost, Release, Unwant, Want

NAME = "indexer"


def candidate(number: int) -> Candidate:
    return Candidate(AgentId.parse(f"m/A#{number}"), Incarnation(100 + number))


A, B = candidate(1), candidate(2)


def test_the_first_who_stands_is_elected_and_the_next_when_it_resigns() -> None:
    contests = Contests()
    assert contests.stands(NAME, A) == [Want(NAME)]
    assert contests.stands(NAME, B) == []
    assert contests.got(NAME, 7) == [Elected(NAME, A, 7)]
    assert contests.resigns(NAME, A) == [Release(NAME, 7), Want(NAME)]
    assert contests.got(NAME, 8) == [Elected(NAME, B, 8)]


def test_a_leader_whose_conversation_ends_still_leads_and_one_whose_process_ended_does_not() -> None:
    contests = Contests()
    contests.stands(NAME, A)
    contests.got(NAME, 7)
    contests.stands(NAME, B)
    assert contests.unheard(NAME, A) == []
    assert contests.ended(A.incarnation) == [Release(NAME, 7), Want(NAME)]


def test_a_leader_that_comes_back_to_a_new_node_goes_on_with_its_term() -> None:
    contests = Contests()
    contests.resume(NAME, A, 7)
    assert contests.stands(NAME, B) == []
    assert contests.stands(NAME, A, claims=7) == [Elected(NAME, A, 7)]


def test_a_claim_that_nothing_is_known_of_counts_where_this_node_alone_elects() -> None:
    assert Contests().stands(NAME, A, claims=7, is_believed=True) == [Elected(NAME, A, 7)]
    assert isinstance(Contests().stands(NAME, A, claims=7)[0], Lost)
    contests = Contests()
    contests.stands(NAME, B)
    contests.got(NAME, 8)
    assert isinstance(contests.stands(NAME, A, claims=7, is_believed=True)[0], Lost)


def test_a_lock_that_comes_when_nobody_stands_any_more_is_let_go() -> None:
    contests = Contests()
    contests.stands(NAME, A)
    assert contests.resigns(NAME, A) == [Unwant(NAME)]
    assert contests.got(NAME, 7) == [Release(NAME, 7)]


def test_after_a_lost_lock_the_next_is_elected_only_when_the_old_leader_has_resigned() -> None:
    contests = Contests()
    contests.stands(NAME, A)
    contests.got(NAME, 7)
    contests.stands(NAME, B)
    assert contests.lost(NAME, "away") == [Lost(NAME, A, "away")]
    assert contests.lost(NAME, "away") == []
    assert contests.stands(NAME, candidate(3)) == []
    assert contests.resigns(NAME, A) == [Want(NAME)]  # without a release: it was not ours any more


def test_who_could_not_be_told_is_the_first_again() -> None:
    contests = Contests()
    contests.stands(NAME, A)
    contests.stands(NAME, B)
    contests.got(NAME, 7)
    assert contests.undone(NAME) == [Release(NAME, 7)]
    assert contests.again(NAME) == [Want(NAME)]
    assert contests.got(NAME, 8) == [Elected(NAME, A, 8)]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["stands", "resigns", "unheard", "ended", "got", "lost", "rebased"]), st.integers(1, 4)),
    max_size=60,
)


@given(EVENTS)
def test_no_two_ever_lead_and_every_term_has_a_greater_fence(events: list[tuple[str, int]]) -> None:
    """Leaders are seen as they see themselves: from being told until they resign or end."""
    contests, fence, is_wanted, ours = Contests(), 0, False, 0
    leading: dict[Candidate, int] = {}
    for what, number in events:
        who = candidate(number)
        match what:
            case "stands":
                deeds = contests.stands(NAME, who, claims=leading.get(who, 0))
            case "resigns":
                leading.pop(who, None)
                deeds = contests.resigns(NAME, who)
            case "unheard":
                deeds = contests.unheard(NAME, who)
            case "ended":
                leading.pop(who, None)
                deeds = contests.ended(who.incarnation)
            case "got" if is_wanted:
                fence += 1
                is_wanted, ours = False, fence
                deeds = contests.got(NAME, fence)
            case "lost" if ours:
                ours = 0
                deeds = contests.lost(NAME, "")
            case "rebased":
                ours, is_wanted = 0, False
                deeds = contests.rebased("")
            case _:
                continue
        for deed in deeds:
            match deed:
                case Want():
                    assert not is_wanted
                    assert not ours
                    is_wanted = True
                case Unwant():
                    is_wanted = False
                case Release(_, told):
                    assert told == ours
                    ours = 0
                case Elected(_, elected, told):
                    assert not leading.keys() - {elected}
                    assert told == ours
                    leading[elected] = told
    held = contests.held.get(NAME)
    assert ({held.candidate} if held else set()) == set(leading)
