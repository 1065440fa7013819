"""Who leads on one machine: whatever happens in whatever order, no two at a time, and fences only grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkit.names import AgentId, Incarnation
from startup.plan.elections import Candidate, Elected, Elections, Lost, Release, Unwant, Want

NAME = "indexer"


def candidate(number: int) -> Candidate:
    return Candidate(AgentId.parse(f"m/A#{number}"), Incarnation(100 + number))


A, B = candidate(1), candidate(2)


def test_the_first_who_stands_is_elected_and_the_next_when_it_resigns() -> None:
    elections = Elections()
    assert elections.stands(NAME, A) == [Want(NAME)]
    assert elections.stands(NAME, B) == []
    assert elections.got(NAME, 7) == [Elected(NAME, A, 7)]
    assert elections.resigns(NAME, A) == [Release(NAME, 7), Want(NAME)]
    assert elections.got(NAME, 8) == [Elected(NAME, B, 8)]


def test_a_leader_whose_conversation_ends_still_leads_and_one_whose_process_ended_does_not() -> None:
    elections = Elections()
    elections.stands(NAME, A)
    elections.got(NAME, 7)
    elections.stands(NAME, B)
    assert elections.unheard(NAME, A) == []
    assert elections.ended(A.incarnation) == [Release(NAME, 7), Want(NAME)]


def test_a_leader_that_comes_back_to_a_new_node_goes_on_with_its_term() -> None:
    elections = Elections()
    elections.resume(NAME, A, 7)
    assert elections.stands(NAME, B) == []
    assert elections.stands(NAME, A, claims=7) == [Elected(NAME, A, 7)]


def test_a_claim_that_nothing_is_known_of_counts_where_this_node_alone_elects() -> None:
    assert Elections().stands(NAME, A, claims=7, is_believed=True) == [Elected(NAME, A, 7)]
    assert isinstance(Elections().stands(NAME, A, claims=7)[0], Lost)
    elections = Elections()
    elections.stands(NAME, B)
    elections.got(NAME, 8)
    assert isinstance(elections.stands(NAME, A, claims=7, is_believed=True)[0], Lost)


def test_a_lock_that_comes_when_nobody_stands_any_more_is_let_go() -> None:
    elections = Elections()
    elections.stands(NAME, A)
    assert elections.resigns(NAME, A) == [Unwant(NAME)]
    assert elections.got(NAME, 7) == [Release(NAME, 7)]


def test_after_a_lost_lock_the_next_is_elected_only_when_the_old_leader_has_resigned() -> None:
    elections = Elections()
    elections.stands(NAME, A)
    elections.got(NAME, 7)
    elections.stands(NAME, B)
    assert elections.lost(NAME, "away") == [Lost(NAME, A, "away")]
    assert elections.lost(NAME, "away") == []
    assert elections.stands(NAME, candidate(3)) == []
    assert elections.resigns(NAME, A) == [Want(NAME)]  # without a release: it was not ours any more


def test_who_could_not_be_told_is_the_first_again() -> None:
    elections = Elections()
    elections.stands(NAME, A)
    elections.stands(NAME, B)
    elections.got(NAME, 7)
    assert elections.undone(NAME) == [Release(NAME, 7)]
    assert elections.again(NAME) == [Want(NAME)]
    assert elections.got(NAME, 8) == [Elected(NAME, A, 8)]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["stands", "resigns", "unheard", "ended", "got", "lost", "rebased"]), st.integers(1, 4)),
    max_size=60,
)


@given(EVENTS)
def test_no_two_ever_lead_and_every_term_has_a_greater_fence(events: list[tuple[str, int]]) -> None:
    """Leaders are seen as they see themselves: from being told until they resign or end."""
    elections, fence, is_wanted, ours = Elections(), 0, False, 0
    leading: dict[Candidate, int] = {}
    for what, number in events:
        who = candidate(number)
        match what:
            case "stands":
                deeds = elections.stands(NAME, who, claims=leading.get(who, 0))
            case "resigns":
                leading.pop(who, None)
                deeds = elections.resigns(NAME, who)
            case "unheard":
                deeds = elections.unheard(NAME, who)
            case "ended":
                leading.pop(who, None)
                deeds = elections.ended(who.incarnation)
            case "got" if is_wanted:
                fence += 1
                is_wanted, ours = False, fence
                deeds = elections.got(NAME, fence)
            case "lost" if ours:
                ours = 0
                deeds = elections.lost(NAME, "")
            case "rebased":
                ours, is_wanted = 0, False
                deeds = elections.rebased("")
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
    held = elections.held.get(NAME)
    assert ({held.candidate} if held else set()) == set(leading)
