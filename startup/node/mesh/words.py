"""What nodes write in their words to each other, read with suspicion: ValueError and TypeError for what can't be meant."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from startup.plan.membership import Reading


def reading(said: Any) -> Reading:
    life, at_ms = said
    return int(life), int(at_ms)


def endpoint(said: object) -> str | None:
    """An address that may be connected to; ValueError when it is none."""
    if said is None:
        return None
    if isinstance(said, str) and said.startswith("tcp://") and len(said) <= 300:
        parts = urlsplit(said)
        if parts.hostname and parts.port:  # `port` raises for what is no number
            return said
    raise ValueError(f"{str(said)[:100]!r} is no tcp:// address with a port")
