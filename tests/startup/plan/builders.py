"""Short ways to write a fleet for tests of plan/."""

from __future__ import annotations

from typing import Any

from agentkit.names import AgentId, AgentName, MachineName
from startup.plan.revision import Revision
from startup.spec.fleet import AgentSpec, AgentTarget, Dependency, Fleet, MachineSpec


def aid(text: str) -> AgentId:
    """`A` is `m/A`."""
    machine, _, name = text.rpartition("/")
    return AgentId(MachineName(machine or "m"), AgentName(name))


def agent(
    text: str, *needs: str, optional: tuple[str, ...] = (), externals: tuple[str, ...] = (), **keys: Any
) -> AgentSpec:
    """An agent that needs others; `needs` and `optional` may say `name:condition`."""
    edges = [(need, True) for need in needs] + [(need, False) for need in optional]
    dependencies = [
        Dependency(
            name=need.partition(":")[0],
            agents=(aid(need.partition(":")[0]),),
            required=required,
            condition=need.partition(":")[2] or "healthy",  # type: ignore[arg-type]
        )
        for need, required in edges
    ]
    dependencies += [Dependency(name=name, external=name) for name in externals]
    facts: dict[str, Any] = {
        "group": "g",
        "klass": "standard",
        "target": AgentTarget(module="m", cls="C"),
        "port": 7000,
        "watchdog_s": 0.0,  # nobody feeds it in virtual time
    }
    return AgentSpec(id=aid(text), dependencies=tuple(dependencies), **(facts | keys))


def revision(
    *agents: AgentSpec, number: int = 1, stopped: tuple[str, ...] = (), down: bool = False, **keys: Any
) -> Revision:
    machines = sorted({spec.machine for spec in agents})
    fleet = Fleet(
        cluster="c",
        project_root="/p",
        file="/p/f.yaml",
        machines=tuple(MachineSpec(name=name) for name in machines),
        agents=agents,
        **keys,
    )
    return Revision(
        number=number, author="ops@here", time_s=0.0, fleet=fleet, stopped=frozenset(map(aid, stopped)), down=down
    )
