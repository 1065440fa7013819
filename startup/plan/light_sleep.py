"""What an agent says of its light sleep (agentkit.agent.hibernation.lifecycle), as a row holds it. Pure.

Keys: `is_asleep`; `since_s`, in seconds since the epoch, None while it is awake; `given_back_mb`, by the last sleep; `wakes`; `wake_s`,
how long the last one took; `kept_by`: what keeps it from sleeping, or from sleeping deep."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

#: Longest text kept of what it says, in characters.
_MAX_TEXT: Final = 200
#: Larger counts do not travel.
_MOST: Final = 2**53


def read(text: str) -> Mapping[str, Any] | None:
    """One X_AGENTKIT_SLEEP; None: it can't be read."""
    try:
        said = json.loads(text)
        return {
            "is_asleep": said["depth"] == "light",
            "since_s": _number(said["since_s"]),
            "given_back_mb": _number(said["given_back_mb"]) or 0.0,
            "wakes": min(max(int(said["wakes"]), 0), _MOST),
            "wake_s": _number(said["wake_s"]),
            "kept_by": str(said["kept_by"])[:_MAX_TEXT],
        }
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
