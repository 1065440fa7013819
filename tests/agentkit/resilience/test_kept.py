"""Answers that are kept: for so long, so many, so large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.resilience.kept import Freezer, Kept


def kept(**options: Any) -> Kept[str]:
    return Kept(**({"ttl_s": 10.0, "entries": 3, "max_bytes": 10_000} | options))


def test_an_answer_is_kept_for_its_time() -> None:
    k = kept()
    k.put("a", "A", 5, 100.0)
    assert k.get("a", 109.9) == "A"
    assert k.get("a", 110.0) is None
    assert (len(k), k.size) == (0, 0)


def test_for_a_new_one_the_least_recently_used_goes() -> None:
    k = kept()
    for n, key in enumerate("abc"):
        k.put(key, key.upper(), 5, float(n))
    assert k.get("a", 4.0) == "A"
    k.put("d", "D", 5, 5.0)
    assert [k.get(key, 6.0) for key in "abcd"] == ["A", None, "C", "D"]


def test_bytes_are_bounded_and_what_is_too_large_is_not_kept() -> None:
    k = kept(entries=1000, max_bytes=3000)
    for n in range(50):
        k.put(n, "x", 800, 0.0)
    assert len(k) == 3
    k.put("large", "x", 3000, 0.0)
    assert k.get("large", 0.0) is None
    k.put(49, "y", 3000, 0.0)
    assert k.get(49, 0.0) is None, "rather none than the one before"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 900), st.booleans())))
def test_the_bounds_hold_whatever_comes(steps: list[tuple[str, int, bool]]) -> None:
    k = kept(max_bytes=2000)
    for now_s, (key, size, is_put) in enumerate(steps):
        if is_put:
            k.put(key, key, size, float(now_s))
        else:
            k.get(key, float(now_s))
        assert len(k) <= 3
        assert 0 <= k.size <= 2000
        assert (k.size == 0) == (len(k) == 0)


def test_what_is_frozen_does_not_change_any_more() -> None:
    array = np.zeros(50_000)
    value = {"list": [1], "array": array}
    frozen = Freezer().freeze(value)
    value["list"] = [2]
    array[0] = 7
    thawed = frozen.thaw()
    assert thawed["list"] == [1]
    assert np.array_equal(thawed["array"], np.zeros(50_000))
    assert frozen.size > 400_000
    with pytest.raises(Exception, match="does not travel"):
        Freezer().freeze(object())
