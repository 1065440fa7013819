"""Whether an agent keeps a state, and with what: agents without one import nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentkit.agent.selfreport import SelfReports
from agentkit.settings import AgentSettings

if TYPE_CHECKING:
    from agentkit.agent.keeper import Keeper
    from agentkit.state.store import Store


def keeper_of(
    agent: Any,
    settings: AgentSettings,
    reports: SelfReports,
    tell: Callable[[dict[str, Any]], None],
    store: Store | None,
) -> Keeper | None:
    """None: the agent has no State. `store`: another one than the settings say."""
    if not agent.keeps_state:
        return None
    from agentkit.agent.keeper import Keeper

    return Keeper(
        agent,
        store or _store_of(settings),
        incarnation=settings.incarnation,
        every_s=settings.state_every_s,
        reports=reports,
        tell=tell,
    )


def _store_of(settings: AgentSettings) -> Store:
    from agentkit.state.sqlite import SqliteStore

    return SqliteStore(settings.data_dir)
