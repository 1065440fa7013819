"""The cluster's rows and who is told: pure, no sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentkit.wire.frames import FrameBuffer
from startup.node.feeds import Feeds
from startup.node.table import ClusterTable
from startup.plan.phase import Phase
from startup.plan.row import AgentRow, Stamps
from tests.startup.plan.builders import aid


def row(text: str, version: int = 1, **facts: Any) -> AgentRow:
    return AgentRow(id=aid(text), version=version, **facts)


class Ear:
    """What one subscriber reads."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self._buffer = FrameBuffer()

    def write(self, frame: bytes) -> None:
        self.heard += [value for _, kind, value in self._buffer.feed(frame) if kind == "event"]

    def take(self) -> list[Any]:
        heard, self.heard = self.heard, []
        return heard


def test_a_row_crosses_the_wire_as_it_is() -> None:
    full = row(
        "n/A", 3, phase=Phase.READY, endpoints={"x": "tcp://h:1"}, stamps=Stamps(ready_s=1.5), waiting_for=("B",)
    )
    assert AgentRow.from_wire(full.to_wire()) == full


def test_only_newer_rows_change_anything() -> None:
    table, told = ClusterTable(), []
    stop = table.listen(told.append)
    assert table.update([row("A"), row("n/B", 5)]) == [row("A"), row("n/B", 5)]
    assert table.update([row("n/B", 4, reason="old"), row("A", 2, reason="new")]) == [row("A", 2, reason="new")]
    assert [len(rows) for rows in told] == [2, 1]
    assert table.get(aid("n/B")) == row("n/B", 5)
    stop()
    table.update([row("A", 3)])
    assert len(told) == 2


def said(*rows: AgentRow, life: int = 1, upto: int = 9, is_all: bool = False) -> dict[str, Any]:
    return {"machine": "n", "rows": rows, "generation": life, "upto": upto, "is_all": is_all}


def test_a_machine_that_tells_all_of_itself_replaces_what_was_known() -> None:
    table = ClusterTable()
    told: list[list[AgentRow]] = []
    table.update([row("A")])
    table.merge(**said(row("n/A", 9), row("n/B", 9), is_all=True))
    table.listen(told.append)
    changed = table.merge(**said(row("n/B", 9), row("n/C", 10), is_all=True, upto=10))
    assert [(str(found.id), found.phase) for found in changed] == [("n/C", Phase.PENDING), ("n/A", Phase.STOPPED)]
    assert told == [changed], "whoever follows A hears that it is gone"
    assert [str(found.id) for found in table.rows()] == ["m/A", "n/B", "n/C"]
    assert table.of_name("A") == [row("A")]


def test_a_later_life_counts_from_below_and_an_earlier_one_is_not_heard_any_more() -> None:
    table = ClusterTable()
    table.merge(**said(row("n/B", 9), is_all=True))
    assert table.merge(**said(row("n/B", 2, reason="anew"), life=2, upto=2, is_all=True))
    assert table.merge(**said(row("n/B", 30, reason="late"), life=1, upto=30)) == []
    assert table.merge(**said(row("n/B", 30, reason="late"), life=1, upto=30, is_all=True)) == []
    assert table.get(aid("n/B")) == row("n/B", 2, reason="anew")


def test_what_arrives_late_brings_back_nothing_that_was_removed() -> None:
    table = ClusterTable()
    table.merge(**said(row("n/A", 1), row("n/B", 2), is_all=True, upto=2))
    table.merge(**said(row("n/A", 1), is_all=True, upto=3))
    assert table.merge(**said(row("n/A", 1), row("n/B", 2), is_all=False, upto=2)) == []
    assert [str(found.id) for found in table.rows()] == ["n/A"]


def test_a_machine_speaks_for_its_own_agents_only() -> None:
    table = ClusterTable()
    assert table.merge(**said(row("A", 5), row("o/A", 5), is_all=True)) == []


def test_rows_of_a_silent_machine_are_shown_as_unreachable_until_it_answers() -> None:
    table = ClusterTable()
    told: list[list[AgentRow]] = []
    table.update([row("A", phase=Phase.READY)])
    there = [row("n/A", phase=Phase.READY), row("n/B", phase=Phase.STOPPED)]
    table.merge(**said(*there, is_all=True))
    table.listen(told.append)
    table.silence(frozenset({"n"}))
    shown = {str(found.id): (found.phase, found.reason) for found in table.rows()}
    assert shown == {
        "m/A": (Phase.READY, ""),
        "n/A": (Phase.UNREACHABLE, "its machine n does not answer"),
        "n/B": (Phase.STOPPED, ""),
    }
    assert [found.phase for found in table.of_name("A")] == [Phase.READY, Phase.UNREACHABLE]
    assert table.of_machine("n") == there, "what it said is kept"
    assert table.digest("n") == table.digest("n", 1)
    table.silence(frozenset())
    assert table.rows()[1:] == there
    assert [[found.phase for found in rows] for rows in told] == [
        [Phase.UNREACHABLE, Phase.STOPPED],
        [Phase.READY, Phase.STOPPED],
    ]


@given(st.data())
def test_copies_agree_whatever_is_lost_doubled_or_late(data: st.DataObject) -> None:
    """An author changes, adds and removes rows, and is started anew; its words arrive in any order, any number of times, or never.
    Then digests are compared, and a copy that differs gets everything, as the mesh does it."""
    author, copy = ClusterTable(), ClusterTable()
    life, version = 1, 0
    words: list[dict[str, Any]] = []
    for _ in range(data.draw(st.integers(0, 12))):
        match data.draw(st.sampled_from(["change", "remove", "restart", "sync"])):
            case "change":
                version += 1
                changed = row(f"n/{data.draw(st.sampled_from('ABC'))}", version, requests=version)
                author.update([changed])
                words.append(said(changed, life=life, upto=version))
            case "remove" if author.rows():
                author.forget([data.draw(st.sampled_from(author.rows())).id])
            case "restart":
                author, life, version = ClusterTable(), life + 1, 0
            case _:
                words.append(said(*author.rows(), life=life, upto=version, is_all=True))
    late = data.draw(st.lists(st.sampled_from(words), max_size=30)) if words else []
    newest = 0
    for word in late:
        newest = max(newest, word["generation"])
        if word["generation"] == newest:  # Membership lets no older life through
            copy.merge(**word)
    if copy.digest("n", life) != author.digest("n"):
        copy.merge(**said(*author.rows(), life=life, upto=author.upto("n"), is_all=True))
    assert copy.digest("n", life) == author.digest("n")
    assert copy.rows() == author.rows()


def test_forgotten_rows_are_gone_by_every_way_of_asking() -> None:
    table = ClusterTable()
    table.update([row("A"), row("n/A")])
    table.forget([aid("A"), aid("nobody")])
    assert table.of_name("A") == table.of_machine("n") == [row("n/A")]
    table.forget([aid("n/A")])
    assert (table.of_name("A"), table.rows()) == ([], [])


def test_watchers_get_everything_once_and_then_what_changes() -> None:
    table = ClusterTable()
    feeds, ear = Feeds(table), Ear()
    table.update([row("A")])
    feeds.watch(ear, 7)
    assert [len(event["rows"]) for event in ear.take()] == [1]
    table.update([row("A", 2), row("B")])
    assert [[found["id"] for found in event["rows"]] for event in ear.take()] == [["m/A", "m/B"]]
    feeds.unwatch(ear, 7)
    table.update([row("A", 3)])
    assert ear.take() == []


def test_followers_of_a_name_hear_all_its_records_when_one_changes_and_nothing_when_only_the_row_does() -> None:
    table = ClusterTable()
    feeds, ear = Feeds(table), Ear()
    table.update([row("A"), row("B")])
    feeds.follow(ear, 1, "A")
    assert [[found["id"] for found in event["records"]] for event in ear.take()] == [["m/A"]]
    table.update([row("A", 2, status_text="busy", requests=9)])
    assert ear.take() == []
    table.update([row("n/A", 1, phase=Phase.READY), row("B", 2, phase=Phase.READY)])
    assert [[found["id"] for found in event["records"]] for event in ear.take()] == [["m/A", "n/A"]]
    feeds.unfollow(ear, 1, "A")
    table.update([row("A", 3, phase=Phase.READY)])
    assert ear.take() == []


def test_a_name_that_nobody_has_yet_is_followed_until_somebody_has_it() -> None:
    table = ClusterTable()
    feeds, ear = Feeds(table), Ear()
    feeds.follow(ear, 1, "Later")
    assert ear.take() == [{"records": []}]
    table.update([replace(row("Later"), phase=Phase.WAITING)])
    assert [event["records"][0]["phase"] for event in ear.take()] == ["waiting"]


def test_consuls_word_is_shown_where_the_agents_own_node_is_not_heard() -> None:
    table, told = ClusterTable(), []
    table.merge(**said(row("n/A", phase=Phase.READY, pid=7), row("n/B", phase=Phase.STOPPED)))
    table.listen(told.append)
    sighted = row("n/A", 0, phase=Phase.READY, reason="consul")
    table.sight({aid("n/A"): sighted})
    assert not told  # its node speaks for itself
    table.silence(frozenset({"n"}))
    assert [found.reason for found in table.of_name("A")] == ["consul"]
    table.sight({})
    assert [found.phase for found in table.of_name("A")] == [Phase.UNREACHABLE]
    table.silence(frozenset())
    assert [found.pid for found in table.of_name("A")] == [7]


def test_consuls_word_of_an_older_life_is_not_shown() -> None:
    table = ClusterTable()
    table.merge(**said(row("n/A", phase=Phase.READY, incarnation=2)))
    table.silence(frozenset({"n"}))
    table.sight({aid("n/A"): row("n/A", 0, phase=Phase.READY, incarnation=1)})
    assert [found.phase for found in table.of_name("A")] == [Phase.UNREACHABLE]


def test_an_agent_that_only_consul_knows_comes_and_goes_and_can_be_forgotten() -> None:
    table, told = ClusterTable(), []
    table.listen(told.append)
    table.sight({aid("x/A"): row("x/A", 0, phase=Phase.READY)})
    table.sight({aid("x/A"): row("x/A", 0, phase=Phase.READY)})
    table.sight({})
    assert [[found.phase for found in rows] for rows in told] == [[Phase.READY], [Phase.UNREACHABLE]]
    assert not table.of_machine("x")
    table.forget([aid("x/A")])
    assert not table.rows()
    assert not table.of_name("A")
