"""How an agent sleeps, as its row has it and `status --json` shows it: of light sleep the agent tells, of deep sleep its slot knows. Pure.

    depth           None, "light" or "deep": how deep it sleeps now
    since_s         asleep since, in seconds since the epoch; None while it is awake
    wakes_at_s      a timer wakes it then; None: none does
    given_back_mb   by this sleep, or by the last light one
    kept_by         what keeps it from sleeping, or, asleep lightly, from sleeping deep; ""
    is_waking       a process is being started for it: callers and registries take it for asleep
    light           of this process: wakes; wake_s, how long the last one took (None: none yet)
    deep            of the slot: the same, and woken_by; useless: of the last wakes, those in a row that no call followed; hasty: those in a
                    row that were an event's, soon after it fell asleep

Empty: it has never slept, and nothing keeps it from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from startup.plan.phase import COMING_UP, Phase
from startup.plan.process import Process
from startup.plan.sleep_record import Sleep

_WAKING: Final = COMING_UP | {Phase.WAITING}
#: Longest text kept of what it says, in characters.
_MAX_TEXT: Final = 200
#: Larger counts do not travel.
_MOST: Final = 2**53


def read_light(text: str) -> Mapping[str, Any] | None:
    """What the agent tells, X_AGENTKIT_SLEEP (agentkit.agent.hibernation.lifecycle); None: it can't be read."""
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


def status(p: Process) -> Mapping[str, Any]:
    """Of one slot."""
    light, deep = p.light_sleep, p.sleep
    if not light and deep is None:
        return {}
    deep = deep or Sleep()
    is_deep = p.phase is Phase.HIBERNATED
    is_light = not is_deep and bool(light.get("is_asleep"))
    return {
        "depth": "deep" if is_deep else "light" if is_light else None,
        "since_s": deep.since_wall_s if is_deep else light.get("since_s"),
        "wakes_at_s": deep.wake_wall_s if is_deep else None,
        "given_back_mb": deep.given_back_mb if is_deep else light.get("given_back_mb", 0.0),
        "kept_by": "" if is_deep else light.get("kept_by") or deep.veto,
        "is_waking": p.phase in _WAKING and deep.is_waking,
        "light": {"wakes": light.get("wakes", 0), "wake_s": light.get("wake_s")},
        "deep": {
            "wakes": deep.wakes,
            "wake_s": deep.took_s,
            "woken_by": deep.why,
            "useless": deep.useless,
            "hasty": deep.hasty,
        },
    }


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number
