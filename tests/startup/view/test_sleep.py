"""Sleep in words."""

from __future__ import annotations

from typing import Any

import pytest

from startup.view.sleep import asleep_for, lightly

AWAKE: dict[str, Any] = {
    "is_asleep": False, "since_s": None, "given_back_mb": 190.2, "wakes": 0, "wake_s": None, "kept_by": "",
}  # fmt: skip
ASLEEP = {**AWAKE, "is_asleep": True, "since_s": 100.0}


@pytest.mark.parametrize(
    ("sleep", "words"),
    [
        ({}, ""),
        (AWAKE, ""),
        (ASLEEP, "asleep (light) for 5m03s, 190.2 MB given back"),
        ({**ASLEEP, "given_back_mb": 0.0, "wakes": 1}, "asleep (light) for 5m03s; 1 wake"),
        ({**ASLEEP, "kept_by": "script-7 is connected"}, "asleep (light) for 5m03s, 190.2 MB given back; not deep: script-7 is connected"),
        ({**AWAKE, "kept_by": "2 calls run"}, "stays awake: 2 calls run"),
        ({**AWAKE, "wakes": 12, "wake_s": 0.084}, "12 wakes, last in 84 ms"),
    ],
)  # fmt: skip
def test_sleep_in_words(sleep: dict[str, Any], words: str) -> None:
    assert lightly(sleep, 403.0) == words
    assert asleep_for(sleep, 403.0) == (words.split("; ")[0] if sleep and sleep["is_asleep"] else "")
