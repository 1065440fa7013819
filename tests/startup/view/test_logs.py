from __future__ import annotations

import json

import pytest

from startup.view.logs import document, merged, parse, plain, render
from tests.startup.view.fleets import an_id

A, B = an_id("m/A"), an_id("m/B#1")


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> object:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def a_line(second: str, message: str, **fields: object) -> str:
    head = {
        "timestamp": f"2025-06-15T15:06:{second}Z",
        "level": "INFO",
        "service": "A",
        "logger": "x",
        "message": message,
    }
    return json.dumps(head | {"task_id": None, "memory_used_mb": 4.1} | fields)


def test_lines_of_several_agents_are_merged_by_time() -> None:
    first = parse(A, [a_line("01.000", "one"), a_line("03.000", "three")])
    second = parse(B, [a_line("02.000", "two"), a_line("04.000", "four")])
    assert [line.fields["message"] for line in merged([first, second]) if line.fields] == [
        "one",
        "two",
        "three",
        "four",
    ]


def test_plain_lines_stay_below_the_line_that_they_follow() -> None:
    first = parse(
        A, ["before everything", a_line("01.000", "one"), "Traceback", "  File x", a_line("00.900", "late thread")]
    )
    second = parse(B, [a_line("02.000", "two")])
    texts = [line.text[:9] for line in merged([first, second])]
    assert texts == ["before ev", '{"timesta', "Traceback", "  File x", '{"timesta', '{"timesta']


def test_a_line_is_rendered_with_time_agent_level_message_and_fields() -> None:
    (line,) = parse(
        B,
        [
            a_line(
                "01.250", "peer.suspect", level="WARNING", peer="C", missed=3, note="two words", exception="E\n  at x"
            )
        ],
    )
    assert render(line, label=4) == [
        '15:06:01.250 B#1  WARNING peer.suspect  peer=C missed=3 note="two words"',
        "    E",
        "      at x",
    ]


def test_broken_json_and_odd_times_are_shown_as_they_are() -> None:
    lines = list(
        parse(A, ['{"half', "[1]", '{"timestamp": "yesterday", "message": "m"}', '{"timestamp": 5, "message": "n"}'])
    )
    assert [line.time_s for line in lines] == [0.0, 0.0, 0.0, 5.0]
    assert render(lines[0], label=2) == ['             A  {"half']


def test_as_json_a_line_tells_whose_it_is() -> None:
    known, text = parse(A, [a_line("01.000", "one", peer="C"), "print"])
    assert document(known)["agent"] == "m/A"
    assert document(known)["peer"] == "C"
    assert document(text) == {"agent": "m/A", "timestamp": "2025-06-15T15:06:01.000+00:00", "message": "print"}


def test_a_tail_for_a_message_says_only_what_was_said() -> None:
    assert plain([a_line("01.000", "on_start failed", level="ERROR", exception="Traceback\nValueError: x")]) == [
        "15:06:01.000 ERROR   on_start failed",
        "    Traceback",
        "    ValueError: x",
    ]
