"""Sleep in words."""

from __future__ import annotations

from typing import Any

import pytest

from startup.view.sleep import asleep_for, in_words

LIGHT: dict[str, Any] = {"wakes": 0, "wake_s": None}
DEEP: dict[str, Any] = {"wakes": 0, "wake_s": None, "woken_by": "", "useless": 0, "hasty": 0}
AWAKE: dict[str, Any] = {
    "depth": None, "since_s": None, "wakes_at_s": None, "given_back_mb": 190.2, "kept_by": "", "is_waking": False,
    "light": LIGHT, "deep": DEEP,
}  # fmt: skip
ASLEEP = {**AWAKE, "depth": "light", "since_s": 100.0}
WOKEN = {"wakes": 3, "wake_s": 0.02, "woken_by": "an event", "useless": 0, "hasty": 2}


@pytest.mark.parametrize(
    ("sleep", "words"),
    [
        ({}, ""),
        (AWAKE, ""),
        (ASLEEP, "asleep (light) for 5m03s, 190.2 MB given back"),
        ({**ASLEEP, "depth": "deep", "wakes_at_s": 463.0}, "asleep (deep) for 5m03s, 190.2 MB given back, wakes by itself in 1m00s"),
        ({**ASLEEP, "given_back_mb": 0.0, "light": {"wakes": 1, "wake_s": None}}, "asleep (light) for 5m03s; 1 wake from light sleep"),
        ({**ASLEEP, "kept_by": "script-7 is connected"}, "asleep (light) for 5m03s, 190.2 MB given back; not deep: script-7 is connected"),
        ({**AWAKE, "kept_by": "2 calls run"}, "stays awake: 2 calls run"),
        ({**AWAKE, "light": {"wakes": 12, "wake_s": 0.084}}, "12 wakes from light sleep, last in 84 ms"),
        ({**AWAKE, "deep": WOKEN}, "woken 3 times, last by an event in 20 ms, the last 2 soon after it fell asleep"),
        ({**AWAKE, "deep": {**DEEP, "wakes": 1, "woken_by": "a connection", "useless": 1}},
         "woken 1 time, last by a connection, the last 1 for nothing"),
    ],
)  # fmt: skip
def test_sleep_in_words(sleep: dict[str, Any], words: str) -> None:
    assert in_words(sleep, 403.0) == words
    assert asleep_for(sleep, 403.0) == (words.split("; ")[0] if sleep and sleep["depth"] else "")
