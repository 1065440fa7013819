from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from agentkit.events.topics import Pattern
from startup.view import events


def agent(id: str, published: dict[str, tuple[int, float | None]], **more: Any) -> dict[str, Any]:
    told = {topic: {"count": count, "per_s": per_s} for topic, (count, per_s) in published.items()}
    counts = {"age_s": 0.5, "patterns": [], "received": 0, "lost": 0, "failed": 0, "dropped": 0}
    return {"id": id, "published": told, **counts, **more}


ANSWERS = [
    {"agents": [agent("m/A", {"task.made": (1000, 2.5), "task.gone": (1, None)}, dropped=3)]},
    {"agents": [agent("n/A", {"task.made": (500, 0.5)}, patterns=["task.*"], received=20_000, lost=7, failed=1)]},
]


def test_topics_are_summed_over_machines_and_losses_are_told() -> None:
    assert events.lines(ANSWERS, width=100) == [
        "TOPIC      PUBLISHED  PER S     AGE  BY",
        "task.gone          1    0.0  500 ms  m/A",
        "task.made       1500    3.0  500 ms  m/A, n/A",
        "",
        "SUBSCRIBER  RECEIVED  LOST  FAILED  TO",
        "n/A            20.0k     7       1  task.*",
        "m/A: 3 found no room towards the relay of its node",
    ]


def test_a_pattern_chooses_topics() -> None:
    document = events.document(ANSWERS, Pattern("*.gone"))
    assert [topic["topic"] for topic in document["topics"]] == ["task.gone"]
    assert document["dropped"] == {"m/A": 3}
    assert events.lines([], width=80) == []


def test_an_event_is_one_line_and_a_gap_stands_before_it() -> None:
    at = datetime(2030, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    gap, line = events.arrived("task.made", "m/A", at, {"id": 1, "text": "x" * 200}, 2, width=80)
    assert gap == "(2 of m/A on task.made missed)"
    assert '5.678 task.made  m/A  {"id": 1, "text": "xx' in line
    assert len(line) <= 80
