from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from startup.spec.units import PortRange, duration_s, port_range, size_bytes, summed


@pytest.mark.parametrize(
    ("text", "seconds"), [("300ms", 0.3), ("10s", 10), ("1.5s", 1.5), ("5m", 300), ("1h", 3600), ("2d", 172800), (0, 0)]
)
def test_durations_are_read(text: object, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [5, 1.5, "5", "5 parsecs", "-1s", "", None, True, "1e3s", [], "400d"])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="duration"):
        duration_s(value)


def test_a_bare_number_is_refused_with_the_unit_to_add() -> None:
    with pytest.raises(PydanticCustomError) as caught:
        duration_s(5)
    assert caught.value.context == {"want": "a duration such as 300ms, 10s, 5m or 1h", "fix": "add the unit: 5s"}


@pytest.mark.parametrize(
    ("text", "size"), [("512Ki", 524288), ("256Mi", 268435456), ("2Gi", 2147483648), ("0.5Gi", 536870912)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("value", ["256MB", "256", 256, "Mi", None])
def test_what_is_no_size_is_refused(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="size"):
        size_bytes(value)


@pytest.mark.parametrize("value", ["10-5", "0-10", "1-65536", "1000", 1000, "a-b"])
def test_what_is_no_range_is_refused(value: object) -> None:
    with pytest.raises(PydanticCustomError, match="range"):
        port_range(value)


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_a_range_is_read_back_as_it_is_written(a: int, b: int) -> None:
    wanted = PortRange(min(a, b), max(a, b))
    assert port_range(str(wanted)) == wanted
    assert wanted.has(a)


@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_a_sum_is_the_sum_of_its_terms(terms: list[int]) -> None:
    assert summed(" + ".join(map(str, terms))) == sum(terms)


@given(st.text(alphabet="0123456789+-*() ab_.", max_size=12))
def test_what_is_no_sum_of_natural_numbers_has_no_value(text: str) -> None:
    if set(text) & set("-*()ab_."):
        assert summed(text) is None
