"""An agent's sleep in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from startup.view.words import count, duration


def lightly(sleep: Mapping[str, Any], now_s: float) -> str:
    """Of `AgentRow.light_sleep`; "" where there is nothing to say. `now_s`: seconds since the epoch."""
    if not sleep:
        return ""
    said = []
    if sleep["is_asleep"]:
        said.append(asleep_for(sleep, now_s))
        if sleep["kept_by"]:
            said.append(f"not deep: {sleep['kept_by']}")
    elif sleep["kept_by"]:
        said.append(f"stays awake: {sleep['kept_by']}")
    if sleep["wakes"]:
        took = f", last in {duration(sleep['wake_s'])}" if sleep["wake_s"] is not None else ""
        said.append(f"{count(sleep['wakes'], 'wake')}{took}")
    return "; ".join(said)


def asleep_for(sleep: Mapping[str, Any], now_s: float) -> str:
    """`asleep (light) for 5m03s, 190.2 MB given back`; "" while it is awake."""
    if not sleep or not sleep["is_asleep"]:
        return ""
    words = "asleep (light)"
    if sleep["since_s"] is not None:
        words += f" for {duration(now_s - sleep['since_s'])}"
    return words + (f", {sleep['given_back_mb']:.1f} MB given back" if sleep["given_back_mb"] >= 0.1 else "")
