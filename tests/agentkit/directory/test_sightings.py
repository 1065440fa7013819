from __future__ import annotations

from agentkit.directory.entries import Entry
from agentkit.directory.sightings import DOUBT_S, Sightings
from agentkit.names import AgentId
from tests.agentkit.directory.test_entries import entry

A, B = entry("pc/a"), entry("pc/b")


def of(*entries: Entry) -> dict[AgentId, Entry]:
    return {found.id: found for found in entries}


def test_who_comes_changes_and_goes_is_told_once() -> None:
    seen = Sightings()
    assert seen.see(of(A, B), 1.0).seen == [A, B]
    assert seen.see(of(A, B), 2.0) == ([], [])
    newer = entry("pc/a", 2)
    assert seen.see(of(newer, B), 3.0) == ([newer], [])
    assert seen.see(of(newer), 4.0) == ([], [B.id])


def test_an_older_life_is_no_news() -> None:
    seen = Sightings()
    seen.see(of(entry("pc/a", 2)), 1.0)
    assert seen.see(of(A), 2.0) == ([], [])


def test_after_trouble_nobody_is_taken_for_gone_until_the_doubt_is_over() -> None:
    seen = Sightings()
    seen.see(of(A, B), 1.0)
    seen.trouble(2.0)
    assert seen.see({}, 3.0) == ([], [])
    assert seen.is_in_doubt
    assert seen.see(of(A), 3.0 + DOUBT_S).gone == [B.id]
    assert not seen.is_in_doubt


def test_consul_that_does_not_show_our_own_is_not_believed_of_others() -> None:
    seen = Sightings()
    seen.see(of(A), 1.0)
    assert seen.see({}, 100.0, misses_ours=True) == ([], [])
    assert seen.see({}, 101.0).gone == [A.id]


def test_who_is_new_is_believed_even_in_doubt() -> None:
    seen = Sightings()
    seen.trouble(0.0)
    assert seen.see(of(A), 1.0).seen == [A]
