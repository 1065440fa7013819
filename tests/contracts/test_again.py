"""What fails in the whole suite is tried again alone only where that can tell an accident from a fault."""

from __future__ import annotations

import pytest

from tests.again import FEW, worth_another_look


def test_few_failures_are_looked_at_again() -> None:
    assert worth_another_look(1, ["tests/a.py::test_one"])


@pytest.mark.parametrize("status", [0, 2, 3, 4, 5])
def test_nothing_else_that_pytest_ends_with_is(status: int) -> None:
    assert not worth_another_look(status, ["tests/a.py::test_one"])


def test_many_failures_are_no_accident() -> None:
    assert not worth_another_look(1, [f"tests/a.py::test_{number}" for number in range(FEW + 1)])


def test_a_file_that_does_not_load_is_no_accident() -> None:
    assert not worth_another_look(1, ["tests/a.py"])
    assert not worth_another_look(1, [])
