from __future__ import annotations

import pytest

from startup.view.words import columns, duration, fit, listing, number


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"), (0.0844, "84 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (9.99, "9.99 s"), (12.4, "12 s"), (59.96, "1m00s"),
        (192, "3m12s"), (7500, "2h05m"), (4 * 86400 + 3 * 3600, "4d03h"),
    ],
)  # fmt: skip
def test_durations_are_short_and_round_without_jumping_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert len(duration(seconds)) <= 7


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (9999, "9999"), (15_234, "15.2k"), (999_600, "1.0M"), (4_500_000_000, "4.5G")]
)
def test_numbers_take_five_characters_at_most(value: int, text: str) -> None:
    assert number(value) == text


def test_text_is_cut_with_an_ellipsis_and_stays_on_one_line() -> None:
    assert fit("one\ntwo  three", 9) == "one two …"
    assert fit("short", 5) == "short"


def test_long_listings_are_counted() -> None:
    assert listing("ABCDEFG", 3) == "A, B, C and 4 more"
    assert listing("AB", 3) == "A, B"


def test_columns_align_numbers_right_and_give_the_rest_to_the_last() -> None:
    table = [("NAME", "N", "NOTE"), ("a", "12345", "a long note that does not fit"), ("bb", "1", "")]
    assert columns(table, right={1}, width=26) == ["NAME      N  NOTE", "a     12345  a long note …", "bb        1"]
