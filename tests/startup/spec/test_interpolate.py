from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from startup.spec.interpolate import expand, interpolate, is_sum
from startup.spec.problem import Problem
from startup.spec.source import Table, parse

NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(alphabet=st.characters(blacklist_categories=("Cs",)), max_size=30)


def filled(text: str, **environ: str) -> tuple[Table, list[Problem]]:
    problems: list[Problem] = []
    table = parse(text, "x.yaml", problems)
    assert table is not None
    interpolate(table, environ, problems)
    return table, problems


@given(NAMES, VALUES)
def test_a_value_is_inserted_as_it_is_and_never_looked_at_again(name: str, value: str) -> None:
    assert expand(f"<${{{name}}}>", {"X": "no", name: value}).text == f"<{value}>"


@given(st.text(alphabet="$", max_size=20))
def test_two_dollars_are_one(dollars: str) -> None:
    assert expand(dollars, {}).text == "$" * (len(dollars) // 2 + len(dollars) % 2)


@given(st.text(alphabet=st.characters(blacklist_characters="$", blacklist_categories=("Cs",))))
def test_text_without_a_dollar_stays(text: str) -> None:
    assert expand(text, {}).text == text


@given(st.text(alphabet="ab{}:-$ A_+1", max_size=25))
def test_no_text_makes_it_raise(text: str) -> None:
    found = expand(text, {"A": "1"})
    assert found.malformed or found.unset or isinstance(found.text, str)


@given(st.text(alphabet=st.characters(blacklist_characters="$}{", blacklist_categories=("Cs",)), max_size=30))
def test_a_default_may_hold_colons_slashes_and_anything_but_braces(default: str) -> None:
    assert expand(f"${{NOT_SET:-{default}}}", {}).text == default


def test_a_default_replaces_an_unset_and_an_empty_value() -> None:
    assert expand("${A:-http://h:80/x}", {"A": ""}).text == "http://h:80/x"
    assert expand("${A:-x}", {"A": "y"}).text == "y"


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${A-b}", "${1A}", "${A:?x}", "${A:-${B}}", "${a b}"])
def test_a_reference_that_can_not_be_read_is_malformed(text: str) -> None:
    assert expand(text, {"A": "x", "B": "y"}).malformed


def test_an_unset_variable_is_an_error_with_its_line() -> None:
    _, (problem,) = filled("a: 1\nb: x-${MISSING}\n")
    assert (problem.severity, problem.check, problem.place, problem.at) == ("error", "unset-variable", "x.yaml:2", "b")
    assert "${MISSING:-default}" in problem.fix


def test_plain_text_turns_into_a_number_and_quoted_text_stays() -> None:
    table, _ = filled("a: ${N}\nb: '${N}'\nc: ${F:-true}\nd: ${N}x\n", N="5")
    assert table == {"a": 5, "b": "5", "c": True, "d": "5x"}


def test_a_value_can_not_open_a_mapping() -> None:
    table, _ = filled("a: ${X}\n", X="{evil: [1, 2]}")
    assert table == {"a": "{evil: [1, 2]}"}


@given(st.integers(0, 50_000), st.integers(0, 15_000))
def test_integer_sums_are_summed(offset: int, base: int) -> None:
    table, problems = filled(f'port: "${{PORT_OFFSET:-0}}+{base}"\n', PORT_OFFSET=str(offset))
    assert table == {"port": offset + base}
    assert table.shifted == {"port"}
    assert not problems


def test_an_unset_variable_in_a_sum_counts_as_zero_with_one_warning() -> None:
    table, (problem,) = filled("a: ${PORT_OFFSET}+7200\nb: ${PORT_OFFSET}+8200\n")
    assert table == {"a": 7200, "b": 8200}
    assert problem.severity == "warning"
    assert "1 more place" in problem.found


@pytest.mark.parametrize("value", ["__import__('os')", "1*2", "-1", "1.5", "", "0x10", "1+1; 2"])
def test_a_sum_of_anything_but_natural_numbers_is_an_error_and_is_not_evaluated(value: str) -> None:
    _, problems = filled("port: '${X}+1'\n", X=value)
    assert [problem.check for problem in problems] == ["interpolation"]


def test_sums_are_left_alone_in_environment_variables_and_arguments() -> None:
    table, problems = filled("env: {PHONE: '${CC}+4912'}\ncommand: [dial, '${CC}+1']\n", CC="49")
    assert table["env"] == {"PHONE": "49+4912"}
    assert table["command"] == ["dial", "49+1"]
    assert not problems


def test_sums_in_config_are_summed() -> None:
    table, _ = filled("config: {port: '${PORT_OFFSET:-0}+7000'}\n")
    assert table["config"] == {"port": 7000}


@pytest.mark.parametrize(
    ("text", "expected"), [("${A}+1", True), ("1+${A}+2", True), ("1+2", False), ("${A}", False), ("a+${A}", False)]
)
def test_what_counts_as_a_sum(text: str, expected: Any) -> None:
    assert is_sum(text) is expected


def test_a_literal_address_is_a_warning_where_it_stands_and_not_in_a_default() -> None:
    _, problems = filled(
        "a: tcp://192.168.1.7:80\nb: '${H:-192.168.1.8}'\nc: 127.0.0.1\nd: 0.0.0.0\ne: [10.1.2.3]\nf: 1.2.3.4.5\n"
    )
    assert [(problem.severity, problem.check, problem.place) for problem in problems] == [
        ("warning", "literal-address", "x.yaml:1"),
        ("warning", "literal-address", "x.yaml:5"),
    ]
    assert "${NAME:-192.168.1.7}" in problems[0].fix
