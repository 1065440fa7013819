"""What a node tells of itself, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def budget(facts: Mapping[str, Any] | None) -> str:
    """Of `node.memory_budget`: `, memory 1.8 of 2.0 GiB budget`; "" without one, or before it was looked at."""
    if not facts or facts["used_mb"] is None:
        return ""
    used_mb, most_mb = facts["used_mb"], facts["budget_mb"]
    words = (
        f"{used_mb / 1024:.1f} of {most_mb / 1024:.1f} GiB"
        if most_mb >= 1024
        else f"{used_mb:.0f} of {most_mb:.0f} MiB"
    )
    return f", memory {words} budget" + (f", nobody else can sleep: {facts['short']}" if facts["short"] else "")
