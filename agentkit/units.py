"""Durations and sizes as people write them: `300ms`, `1.5s`, `5m`; `512Ki`, `2Gi`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from agentkit.errors import ConfigError

SECONDS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


_UNIT_BYTES: Final[Mapping[str, int]] = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def size_bytes(text: str | int, *, at: str = "size") -> int:
    """`text` (`512Ki`, `256Mi`, `2Gi`) in bytes; a bare number is bytes. ConfigError, naming `at`, for anything else."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if isinstance(text, str) and (match := _QUANTITY.fullmatch(text)) and match[2] in _UNIT_BYTES:
        return int(float(match[1]) * _UNIT_BYTES[match[2]])
    raise ConfigError(at=at, got=text, want="a size such as 512Ki, 256Mi or 2Gi, or a number of bytes")


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
