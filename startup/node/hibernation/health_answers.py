"""What a node answers at the health port of an agent that sleeps, in the agent's own words as far as it left any."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from agentkit.clock import now_s, wall_s
from startup.node.hibernation.health_server import Answer
from startup.plan.process import Process

#: Where an agent leaves the text of its counters (agentkit.agent.hibernation.deep_sleep).
COUNTERS_FILE: Final = "asleep.prom"
#: What is read of it, in bytes.
MAX_COUNTERS_BYTES: Final = 1024 * 1024
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


def told(p: Process | None, path: str, folder: Path) -> Answer:
    """The answer at `path`. `folder`: the agent's data directory."""
    if p is None or p.sleep is None:
        return _json(503, {"status": "unknown"})
    match path:
        case "/live":
            return _json(200, {"status": "hibernated"})
        case "/ready":
            return _json(200, {"ready": True, **_brief()})
        case "/startup":
            return _json(200, {"started": True, **_brief()})
        case "/health":
            return _json(200, _whole(p))
        case "/metrics":
            return Answer(200, _TEXT, _metrics(p, folder))
    return Answer(404, "text/plain", b"Not Found")


def _brief() -> dict[str, Any]:
    return {"phase": "hibernated", "status": "ok", "reasons": []}


def _whole(p: Process) -> dict[str, Any]:
    assert p.sleep is not None
    since_s = p.sleep.since_wall_s
    return {
        **_brief(),
        "name": str(p.id.name),
        "instance": p.id.instance,
        "machine": str(p.id.machine),
        "incarnation": int(p.incarnation),
        "asleep": "deep",
        "started": True,
        "ready": True,
        "asleep_s": None if since_s is None else round(max(0.0, wall_s() - since_s), 3),
        "wakes_in_s": None if p.deadline_s is None else round(max(0.0, p.deadline_s - now_s()), 3),
        "wakes": p.sleep.wakes,
        "in_flight": 0,
        "memory_mb": 0.0,
        "checks": {},
        "details": {},
    }


def _metrics(p: Process, folder: Path) -> bytes:
    """Its counters as it left them, so that none seems to have gone, and that it sleeps."""
    assert p.sleep is not None
    label = f'{{agent="{p.id.name}"}}'
    text = (
        "# HELP agent_hibernated 1 while it has no process\n# TYPE agent_hibernated gauge\n"
        f"agent_hibernated{label} 1.0\n"
    )
    return _left(folder / COUNTERS_FILE) + text.encode()


def _left(path: Path) -> bytes:
    """What the agent wrote there. It may run as another user than the node, which must not be made to read anything else."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size > MAX_COUNTERS_BYTES:
                return b""
            return file.read(found.st_size)
    except OSError:
        return b""


def _json(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, "application/json", json.dumps(body, separators=(",", ":")).encode())
