"""Durations, sizes, port ranges and integer sums as people write them. Pure; every refusal says what is wanted."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from pydantic_core import PydanticCustomError

from agentkit.errors import ConfigError
from agentkit.units import seconds

#: Longest duration taken, in seconds: a year. More is a slip of the unit.
MAX_DURATION_S: Final = 366 * 24 * 3600.0

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti)")
_UNIT_BYTES: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_RANGE: Final = re.compile(r"(\d{1,5})\s*-\s*(\d{1,5})")
_SUM: Final = re.compile(r"\s*\d+(?:\s*\+\s*\d+)*\s*")


class PortRange(NamedTuple):
    """Both ends belong to it."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def shifted(self, offset: int) -> PortRange:
        return PortRange(self.first + offset, self.last + offset)

    def has(self, port: int) -> bool:
        return self.first <= port <= self.last


def refuse(want: str, fix: str = "", *, found: str = "") -> PydanticCustomError:
    """The error that model validators raise: `want` and `fix` reach the Problem unchanged. `found`: instead of the value, which
    nobody else is to see."""
    return PydanticCustomError("wanted", "{want}", {"want": want, "fix": fix, **({"found": found} if found else {})})


def duration_s(value: object) -> float:
    """Seconds of `300ms`, `1.5s`, `5m`, `1h`, `2d`, or 0. A bare number is refused: its unit would be a guess."""
    if value == 0 and not isinstance(value, bool):
        return 0.0
    want = "a duration such as 300ms, 10s, 5m or 1h"
    is_bare = isinstance(value, int | float) and not isinstance(value, bool)
    if is_bare or (isinstance(value, str) and value.strip().isdigit()):
        raise refuse(want, f"add the unit: {value}s")
    try:
        found_s = seconds(value)  # type: ignore[arg-type]  # it refuses whatever is no text
    except ConfigError:
        raise refuse(want) from None
    if found_s > MAX_DURATION_S:
        raise refuse("a duration of at most 366 days")
    return found_s


def size_bytes(value: object) -> int:
    """Bytes of `512Ki`, `256Mi`, `2Gi`."""
    matched = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if matched is None:
        bare = isinstance(value, int) and not isinstance(value, bool)
        raise refuse("a size such as 512Ki, 256Mi or 2Gi", f"add the unit: {value}Mi" if bare else "")
    return int(float(matched[1]) * _UNIT_BYTES[matched[2]])


def port_range(value: object) -> PortRange:
    """`10000-10099`, both ends within 1-65535."""
    matched = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    found = PortRange(int(matched[1]), int(matched[2])) if matched else None
    if found is None or not 1 <= found.first <= found.last <= 65535:
        raise refuse("a range of ports within 1-65535, such as 10100-10199")
    return found


def summed(text: str) -> int | None:
    """The value of `7200` or `100+7200`; None when the text is no sum of natural numbers."""
    return sum(map(int, text.split("+"))) if _SUM.fullmatch(text) else None


def is_web_address(text: str) -> bool:
    """Whether `text` is an http:// or https:// URL with a host, and a port that exists where it names one."""
    try:
        parts = urlsplit(text)
        has_port = parts.port is None or parts.port > 0  # reading it checks it
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and has_port
