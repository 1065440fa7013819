from __future__ import annotations

from pathlib import Path

from startup.spec.problem import Problem
from startup.spec.source import Items, Place, Plain, Table, parse, read, scalar


def parsed(text: str) -> tuple[Table, list[Problem]]:
    problems: list[Problem] = []
    table = parse(text, "x.yaml", problems)
    assert table is not None, problems
    return table, problems


def test_every_key_and_item_knows_its_line() -> None:
    table, _ = parsed("a: 1\nb:\n  c: 2\n  d:\n    - e: 3\n    - 4\n")
    assert table.place_of("b", "c") == Place("x.yaml", 3)
    assert table.place_of("b", "d", 0, "e") == Place("x.yaml", 5)
    assert table.place_of("b", "d", 1) == Place("x.yaml", 6)
    assert str(table.place_of("b", "nothing")) == "x.yaml:2"


def test_a_duplicate_key_is_a_problem_and_the_first_one_counts() -> None:
    table, (problem,) = parsed("a: 1\nb: 2\na: 3\n")
    assert table == {"a": 1, "b": 2}
    assert (problem.check, problem.place) == ("duplicate-key", "x.yaml:3")
    assert "first: x.yaml:1" in problem.found


def test_duplicate_keys_are_found_at_every_depth() -> None:
    _, problems = parsed("a:\n  b: {c: 1, c: 2}\n  b: 3\n")
    assert [problem.at for problem in problems] == ["a.b.c", "a.b"]


def test_what_is_no_yaml_is_a_problem_with_its_line() -> None:
    problems: list[Problem] = []
    assert parse("a: 1\nb: {port: ${X}+1}\n", "x.yaml", problems) is None
    assert problems[0].place == "x.yaml:2"
    assert "quotes" in problems[0].fix


def test_tabs_are_explained() -> None:
    problems: list[Problem] = []
    assert parse("a:\n\tb: 1\n", "x.yaml", problems) is None
    assert problems[0].fix == "indent with spaces"


def test_a_file_that_is_not_there_or_no_text_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    problems: list[Problem] = []
    assert read(tmp_path / "nope.yaml", problems) is None
    assert read(tmp_path / "binary.yaml", problems) is None
    assert read(tmp_path, problems) is None
    assert [problem.check for problem in problems] == ["file"] * 3


def test_an_empty_file_and_a_list_are_no_mapping() -> None:
    for text in ("", "- a\n", "just text"):
        problems: list[Problem] = []
        assert parse(text, "x.yaml", problems) is None
        assert problems[0].found == "no mapping at the top level"


def test_python_tags_are_refused_and_nothing_is_built() -> None:
    table, (problem,) = parsed("b: !thing y\n")
    assert table == {"b": None}
    assert problem.check == "tag"


def test_merge_keys_fill_in_and_own_keys_win() -> None:
    table, problems = parsed("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n")
    assert not problems
    assert table["use"] == {"y": 3, "x": 1}


def test_an_alias_that_holds_itself_is_a_problem() -> None:
    _, problems = parsed("a: &x\n  b: *x\n")
    assert [problem.check for problem in problems] == ["alias"]


def test_aliases_are_separate_values() -> None:
    table, _ = parsed("a: &x {k: [1]}\nb: *x\n")
    table["a"]["k"].append(2)
    assert table["b"]["k"] == [1]


def test_scalars_are_typed_and_keys_are_text() -> None:
    table, _ = parsed("i: 7\nf: 1.5\nb: true\nn:\ns: '7'\nd: 2024-01-01\n80: x\n")
    assert table == {"i": 7, "f": 1.5, "b": True, "n": None, "s": "7", "d": "2024-01-01", "80": "x"}


def test_environment_variables_and_arguments_stay_the_text_that_was_written() -> None:
    table, _ = parsed("env: {A: 007, B: true}\ncommand: [sleep, 010]\nconfig: {env: {A: 007}}\n")
    assert table["env"] == {"A": "007", "B": "true"}
    assert table["command"] == ["sleep", "010"]
    assert table["config"]["env"]["A"] == 7


def test_plain_text_with_a_reference_is_marked_and_quoted_text_is_not() -> None:
    table, _ = parsed("a: ${X:-5}\nb: '${X:-5}'\nc: [\"${X}\"]\n")
    assert isinstance(table["a"], Plain)
    assert not isinstance(table["b"], Plain)
    assert isinstance(table["c"], Items)


def test_a_scalar_becomes_a_number_or_a_bool_and_never_a_collection() -> None:
    assert [scalar(text) for text in ("5", "1.5", "true", "{a: 1}", "[1]", "", "null", "x")] == [
        5, 1.5, True, "{a: 1}", "[1]", "", "null", "x",
    ]  # fmt: skip
