from __future__ import annotations

from datetime import UTC, datetime

from agents.reporter import Away, Load, MachineFigures, Report, TaskFigures, UsageFigures, to_markdown

WHOLE = Report(
    made=datetime(2030, 1, 2, 3, 4, tzinfo=UTC),
    tasks=TaskFigures(total=3, by_status={"open": 2, "done": 1}, overdue=1),
    usage=[UsageFigures(start=datetime(2030, 1, 1, tzinfo=UTC), name="search", events=10, errors=2)],
    machines=[
        MachineFigures(
            machine="main_pc",
            cpu_percent=Load(mean=12.5, high=80.0),
            memory_percent=Load(mean=40.0, high=41.0),
            warnings=["disk / at 95 %, above 90 %"],
        )
    ],
    away=[],
)


def test_a_whole_report_shows_every_section() -> None:
    assert to_markdown(WHOLE) == (
        "# Report of 2030-01-02 03:04 UTC\n"
        "\n## Tasks\n\n3 tasks, 1 overdue.\n\n"
        "| status | tasks |\n| --- | --- |\n| open | 2 |\n| done | 1 |\n"
        "\n## Usage\n\n"
        "| from | event | events | errors |\n| --- | --- | --- | --- |\n| 2030-01-01 00:00 | search | 10 | 2 |\n"
        "\n## Machines\n\n"
        "| machine | CPU mean % | CPU high % | memory mean % | warnings |\n| --- | --- | --- | --- | --- |\n"
        "| main_pc | 12.5 | 80.0 | 40.0 | disk / at 95 %, above 90 % |\n"
    )


def test_what_is_missing_is_said_first_and_its_section_left_out() -> None:
    away = [Away(agent="TaskManager", reason="no agent called 'TaskManager'")]
    text = to_markdown(WHOLE.model_copy(update={"tasks": None, "machines": [], "away": away}))
    assert text.splitlines()[2] == "**Incomplete:** TaskManager is away (no agent called 'TaskManager')"
    assert "## Tasks" not in text
    assert "## Machines" not in text
    assert "## Usage" in text


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    usage = [UsageFigures(start=WHOLE.made, name="a|b", events=1, errors=0)]
    assert "| a\\|b |" in to_markdown(WHOLE.model_copy(update={"usage": usage}))


def test_no_events_are_said_in_words() -> None:
    assert "No events." in to_markdown(WHOLE.model_copy(update={"usage": []}))
