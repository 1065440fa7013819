"""An agent as Consul shows it, as a row. Pure.

Such rows are shown where an agent's own node is not heard: what that says comes sooner and tells more."""

from __future__ import annotations

from agentkit.directory.entries import Entry
from startup.plan.phase import Phase
from startup.plan.row import AgentRow

#: Shown as the reason of rows that nobody but Consul tells of.
BY_CONSUL = "as Consul says; its node is not heard"


def sighted(entry: Entry) -> AgentRow:
    """The row of an agent that passes in Consul."""
    return AgentRow(
        id=entry.id,
        group=entry.group,
        phase=Phase(entry.phase),
        reason=BY_CONSUL,
        required=False,
        incarnation=entry.incarnation,
        endpoints=dict(entry.endpoints),
        timeouts_s=dict(entry.methods.get("timeouts_s", {})),
        traits=dict(entry.methods.get("traits", {})),
        health_url=entry.health_url,
    )
