"""An agent's sleep in words (plan.sleep_status). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from startup.view.words import count, duration


def in_words(sleep: Mapping[str, Any], now_s: float) -> str:
    """How it sleeps, slept last, or why it does not; "" where there is nothing to say. `now_s`: seconds since the epoch."""
    if not sleep:
        return ""
    said = []
    if sleep["depth"]:
        said.append(asleep_for(sleep, now_s))
    if sleep["kept_by"]:
        said.append(f"{'not deep' if sleep['depth'] else 'stays awake'}: {sleep['kept_by']}")
    light, deep = sleep["light"], sleep["deep"]
    if deep["wakes"]:
        words = f"woken {count(deep['wakes'], 'time')}, last by {deep['woken_by']}{_took(deep, ' in ')}"
        words += f", the last {deep['useless']} for nothing" if deep["useless"] else ""
        said.append(words + (f", the last {deep['hasty']} soon after it fell asleep" if deep["hasty"] else ""))
    if light["wakes"]:
        said.append(f"{count(light['wakes'], 'wake')} from light sleep{_took(light, ', last in ')}")
    return "; ".join(said)


def asleep_for(sleep: Mapping[str, Any], now_s: float) -> str:
    """`asleep (light) for 5m03s, 190.2 MB given back`; "" while it is awake."""
    if not sleep or not sleep["depth"]:
        return ""
    words = f"asleep ({sleep['depth']})"
    if sleep["since_s"] is not None:
        words += f" for {duration(max(0.0, now_s - sleep['since_s']))}"
    if sleep["given_back_mb"] >= 0.1:
        words += f", {sleep['given_back_mb']:.1f} MB given back"
    if sleep["wakes_at_s"] is not None:
        words += f", wakes by itself in {duration(max(0.0, sleep['wakes_at_s'] - now_s))}"
    return words


def _took(wakes: Mapping[str, Any], before: str) -> str:
    return "" if wakes["wake_s"] is None else f"{before}{duration(wakes['wake_s'])}"
