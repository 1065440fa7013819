"""Fleets as rows, for the tests of what is drawn from them. One second-stamp base, so that pictures never change."""

from __future__ import annotations

import random

from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from startup.plan.phase import Health, Phase
from startup.plan.row import AgentRow, Stamps

T0_S = 1_750_000_000.0


def an_id(text: str) -> AgentId:
    return AgentId.parse(text)


def a_row(id: str, phase: Phase = Phase.READY, **facts: object) -> AgentRow:
    defaults: dict[str, object] = {
        "group": "core",
        "pid": 4000 + len(id) if phase is Phase.READY else None,
        "stamps": Stamps(
            wanted_s=T0_S,
            unblocked_s=T0_S + 0.01,
            forked_s=T0_S + 0.02,
            importing_s=T0_S + 0.025,
            starting_s=T0_S + 0.05,
            ready_s=T0_S + 0.1 if phase is Phase.READY else None,
        ),
        "endpoints": {"inbox-local": "tcp://127.0.0.1:10100"} if phase is Phase.READY else {},
        "log": f"/state/logs/{id.partition('/')[2]}.log",
    }
    return AgentRow(id=an_id(id), phase=phase, **{**defaults, **facts})  # type: ignore[arg-type]


def some_states() -> list[AgentRow]:
    """One of each kind that an operator meets, on two machines."""
    return [
        a_row("main_pc/Database", requests=15_234, errors=2, memory_mb=4.12),
        a_row(
            "main_pc/TaskManager",
            health=Health.DEGRADED,
            reason="Analytics stopped by operator",
            requests=12,
            memory_mb=5.0,
        ),
        a_row(
            "main_pc/Vision",
            Phase.FAILED,
            reason="on_start raised FileNotFoundError: model.bin",
            restarts=3,
            group="models",
        ),
        a_row("main_pc/Describer", Phase.SKIPPED, reason="Vision failed", because="main_pc/Vision", group="models"),
        a_row("pc2/Analytics", Phase.STOPPED, reason="stopped by operator"),
        a_row("pc2/Reporter", Phase.WAITING, waiting_for=("Analytics", "Redis"), group="reports"),
        a_row(
            "pc2/TheAgentWithTheVeryLongNameOfTheWholeFleet", Phase.IMPORTING, pid=5123, group="reports", required=False
        ),
        a_row(
            "pc2/Worker",
            Phase.BACKOFF,
            reason="starts again in 2 s",
            last_exit="signal SIGKILL 3 s ago",
            group="reports",
        ),
        a_row("pc2/Worker#1", health=Health.FAILING, reason="check model_loaded: no model", group="reports"),
    ]


def levelled(agents: int, *, seed: int = 7, levels: int = 9) -> list[AgentRow]:
    """A start of `agents` agents, level by level, with believable stamps and the dependency that unblocked each."""
    dice = random.Random(seed)
    by_level: list[list[AgentRow]] = []
    for number in range(agents):
        level = min(number * levels // agents, levels - 1)
        machine = MachineName("main_pc" if number % 3 else "pc2")
        before = (
            max(dice.sample(by_level[level - 1], k=min(2, len(by_level[level - 1]))), key=_ready) if level else None
        )
        unblocked_s = _ready(before) + 0.002 if before else T0_S + 0.001
        forked_s = unblocked_s + dice.uniform(0.001, 0.004)
        importing_s = forked_s + dice.uniform(0.002, 0.01)
        starting_s = importing_s + dice.uniform(0.0, 0.03)
        row = AgentRow(
            id=AgentId(machine, AgentName(f"Member{number:03}")),
            group=f"group{level}",
            phase=Phase.READY,
            pid=3000 + number,
            incarnation=Incarnation(number + 1),
            required=number % 11 != 3,
            slowest_dependency=str(before.id) if before else "",
            stamps=Stamps(
                wanted_s=T0_S,
                unblocked_s=unblocked_s,
                forked_s=forked_s,
                importing_s=importing_s,
                starting_s=starting_s,
                ready_s=starting_s + dice.uniform(0.01, 0.08),
            ),
        )
        while len(by_level) <= level:
            by_level.append([])
        by_level[level].append(row)
    return [row for rows in by_level for row in rows]


def _ready(row: AgentRow) -> float:
    assert row.stamps.ready_s is not None
    return row.stamps.ready_s
