"""Durations as people write them: `300ms`, `1.5s`, `5m`, `1h`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from agentkit.errors import ConfigError

SECONDS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def seconds(text: str | float, *, at: str = "duration") -> float:
    """`text` in seconds; a bare number is seconds. ConfigError, naming `at`, for anything else."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        if text >= 0:
            return float(text)
    elif isinstance(text, str) and (match := _QUANTITY.fullmatch(text)):
        number, unit = match.groups()
        if unit in SECONDS or (not unit and float(number) == 0):
            return float(number) * SECONDS.get(unit, 1.0)
    raise ConfigError(at=at, got=text, want="a duration such as 300ms, 10s, 5m or 1h")
