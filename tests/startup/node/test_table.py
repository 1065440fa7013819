"""The cluster's rows and who is told: pure, no sockets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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


def test_a_machine_that_tells_all_of_itself_replaces_what_was_known() -> None:
    table = ClusterTable()
    table.update([row("n/A", 9), row("n/B", 9), row("A")])
    changed = table.replace_machine("n", [row("n/B", 9), row("n/C", 1)])
    assert changed == [row("n/C", 1)]
    assert [str(found.id) for found in table.rows()] == ["m/A", "n/B", "n/C"]
    assert table.of_name("A") == [row("A")]
    assert table.replace_machine("n", [row("n/B", 2, reason="anew")]) == [row("n/B", 2, reason="anew")]


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
