"""Durations as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from agentkit.errors import ConfigError
from agentkit.units import seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("300ms", 0.3),
        ("1.5s", 1.5),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("0", 0),
        (3, 3.0),
        (0.5, 0.5),
        (" 4 s ", 4),
    ],
)
def test_durations(text: Any, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("wrong", ["", "5", "fast", "-1s", "1 w", -1, float("nan"), None, True, "1e3s", []])
def test_what_is_no_duration_is_refused_with_its_place(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"^start\.timeout: got .*a duration such as"):
        seconds(wrong, at="start.timeout")
