"""The documents that `--json` prints (configuration.md, "Command line"): keys and units are a promise to scripts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from agentkit.directory.base import INBOX, INBOX_LOCAL
from agentkit.names import AgentId
from startup.plan.phase import ALIVE, UP, Phase
from startup.plan.row import AgentRow
from startup.view.verdict import failed_rows, is_degraded, skipped_rows


def endpoint(row: AgentRow) -> str | None:
    """The address that a plain client would connect to."""
    for name in (INBOX_LOCAL, INBOX):
        if name in row.endpoints:
            return row.endpoints[name]
    return next(iter(row.endpoints.values()), None)


def agent(row: AgentRow, began_s: float | None) -> dict[str, Any]:
    """One agent. `began_s`: when the command began, seconds since the epoch; None: when its own start was asked for."""
    zero_s = row.stamps.wanted_s if began_s is None else began_s

    def since(stamp_s: float | None) -> float | None:
        return None if stamp_s is None or zero_s is None else round(stamp_s - zero_s, 4)

    return {
        "name": str(row.id.name),
        "instance": row.id.instance,
        "machine": str(row.id.machine),
        "phase": row.phase.value,
        "pid": row.pid,
        "endpoint": endpoint(row),
        "health_url": row.health_url,
        "forked_s": since(row.stamps.forked_s),
        "ready_s": since(row.stamps.ready_s),
        "restarts": row.restarts,
    }


def uptime_s(row: AgentRow, now_s: float) -> float | None:
    """Since its process was forked; None when there is none. `now_s`: seconds since the epoch."""
    if row.phase not in ALIVE or row.stamps.forked_s is None:
        return None
    return max(0.0, now_s - row.stamps.forked_s)


def agent_with_figures(row: AgentRow, now_s: float) -> dict[str, Any]:
    """One agent of `status`: the same keys, then how it fares."""
    up_s = uptime_s(row, now_s)
    return agent(row, None) | {
        "health": row.health.value,
        "memory_mb": row.memory_mb,
        "requests": row.requests,
        "errors": row.errors,
        "uptime_s": None if up_s is None else round(up_s, 1),
        "group": row.group,
        "required": row.required,
        "reason": row.reason,
        "waiting_for": list(row.waiting_for),
        "because": row.because,
        "last_exit": row.last_exit,
        "last_error": row.last_error,
        "status_text": row.status_text,
        "sleep": dict(row.sleep) or None,
        "roll": row.roll,
        "roll_error": row.roll_error,
        "log": row.log,
        "state": dict(row.state) or None,
    }


def up(
    cluster: str,
    rows: Mapping[AgentId, AgentRow],
    wanted: Collection[AgentId],
    *,
    began_s: float,
    elapsed_s: float,
    log_tails: Mapping[AgentId, list[str]],
) -> dict[str, Any]:
    """What `up --json` prints. `began_s`: when the command began, seconds since the epoch."""
    ours = [rows[id] for id in wanted if id in rows]
    return {
        "cluster": cluster,
        "elapsed_s": round(elapsed_s, 4),
        "ready": sum(row.phase in UP for row in ours),
        "degraded": [
            {"agent": row.id.instance, "machine": str(row.id.machine), "reason": row.reason}
            for row in ours
            if is_degraded(row)
        ],
        "failed": [
            {
                "agent": row.id.instance,
                "machine": str(row.id.machine),
                "reason": why(row),
                "log_tail": log_tails.get(row.id, []),
            }
            for row in failed_rows(rows, wanted)
        ],
        "skipped": [
            {"agent": row.id.instance, "because": row.because or row.reason} for row in skipped_rows(rows, wanted)
        ],
        "agents": [agent(row, began_s) for row in ours],
    }


def why(row: AgentRow) -> str:
    """The one line that says what is the matter with an agent; empty when nothing is."""
    match row.phase:
        case Phase.WAITING | Phase.PENDING:
            return row.reason or ("waits for " + ", ".join(row.waiting_for) if row.waiting_for else "")
        case Phase.SKIPPED:
            return row.reason or (f"{row.because} failed" if row.because else "")
        case Phase.HIBERNATED:
            mb = row.sleep.get("given_back_mb")
            return row.reason or (f"{mb:.1f} MB given back" if mb else "")
        case Phase.READY | Phase.COMPLETED:
            return f"not replaced, it serves on: {row.roll_error}" if row.roll_error else row.reason or row.roll
        case _:
            return row.reason or row.last_error or row.last_exit


def status(
    cluster: str, answers: Iterable[Mapping[str, Any]], rows: Iterable[AgentRow], now_s: float
) -> dict[str, Any]:
    """What `status --json` prints. `answers`: of the `status` operation, one per node that told of itself."""
    answers = list(answers)
    told = {answer["machine"] for answer in answers}
    silent_s = {machine: age_s for answer in answers for machine, age_s in answer.get("silent_s", {}).items()}
    return {
        "cluster": cluster,
        "nodes": [
            {
                "machine": answer["machine"],
                "node": answer["node"],
                "revision": answer["revision"],
                "peers": answer["peers"],
                "clock_s": answer.get("clock_s", 0.0),
            }
            for answer in answers
        ],
        "silent_s": {machine: age_s for machine, age_s in sorted(silent_s.items()) if machine not in told},
        "agents": [agent_with_figures(row, now_s) for row in rows],
    }
