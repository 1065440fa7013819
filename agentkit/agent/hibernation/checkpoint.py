"""What a deep sleep leaves for the next life of the agent, in its data directory: read once, when that life begins.

Nothing of it is the author's (that is the state): when `@every` methods ran last, and which events had come, so that what is due is
not put off by each sleep, and what came meanwhile is counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agentkit.clock import now_s, wall_s
from agentkit.observe.log import get_logger

log = get_logger("agentkit.sleep")

FILE: Final = "asleep.json"
#: What is read of it, in bytes.
MAX_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    ran_s: Mapping[str, float] = field(default_factory=dict)  #: `@every` methods: when they ran last, monotonic
    streams: tuple[tuple[str, str, int, int], ...] = ()  #: of events: publisher, topic, life, last number
    has_kept: bool = False  #: the node keeps what came since then


def write(
    folder: Path, ran_s: Mapping[str, float], streams: Iterable[tuple[str, str, int, int]], *, has_kept: bool
) -> None:
    """OSError: it can't be written."""
    offset_s = wall_s() - now_s()
    left = {"every": {name: at_s + offset_s for name, at_s in ran_s.items()}, "events": list(streams), "kept": has_kept}
    if any(left.values()):
        (folder / FILE).write_text(json.dumps(left))


def take(folder: Path) -> Checkpoint:
    """What is there, once; nothing where it can't be read, which is logged."""
    path = folder / FILE
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES)
        path.unlink()
    except FileNotFoundError:
        return Checkpoint()
    except OSError as exc:
        log.warning("sleep.left_unreadable", path=str(path), error=str(exc))
        return Checkpoint()
    try:
        left: Any = json.loads(text)
        offset_s = now_s() - wall_s()
        return Checkpoint(
            {str(name): float(at_s) + offset_s for name, at_s in left["every"].items()},
            tuple((str(who), str(topic), int(life), int(number)) for who, topic, life, number in left["events"]),
            bool(left.get("kept")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        log.warning("sleep.left_unreadable", path=str(path), error=repr(exc))
        return Checkpoint()
