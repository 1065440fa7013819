"""Whether an agent keeps a state, and with what: agents without one import nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentkit.agent.selfreport import SelfReports
from agentkit.clock import wall_s
from agentkit.errors import ConfigError
from agentkit.names import Incarnation
from agentkit.settings import AgentSettings

if TYPE_CHECKING:
    from agentkit.agent.state_keeper import StateKeeper
    from agentkit.state.store import Store


def keeper_of(
    agent: Any,
    settings: AgentSettings,
    reports: SelfReports,
    tell: Callable[[dict[str, Any]], None],
    store: Store | None,
) -> StateKeeper | None:
    """None: the agent has no State. `store`: another one than the settings say."""
    if not agent.keeps_state:
        return None
    from agentkit.agent.state_keeper import StateKeeper

    is_shared = settings.state_store == "redis"
    # Nobody counts incarnations of what is started by hand; where no file can be locked, whoever was started last has the state
    by_hand = Incarnation(int(wall_s() * 1000) if is_shared else 0)
    return StateKeeper(
        agent,
        store or _store_of(settings),
        incarnation=settings.incarnation or by_hand,
        every_s=settings.state_every_s,
        reports=reports,
        tell=tell,
    )


def _store_of(settings: AgentSettings) -> Store:
    """ConfigError: what it needs is not there."""
    if settings.state_store == "redis":
        try:
            from agentkit.state.redis import RedisStore
        except ImportError as exc:
            raise ConfigError(
                at="AGENTKIT_STATE_STORE", got="redis", want="its client, which is not installed",
                fix="pip install 'agentkit[redis]'",
            ) from exc  # fmt: skip

        return RedisStore(settings.read_state_url(), settings.id, settings.cluster)
    from agentkit.state.sqlite import SqliteStore

    return SqliteStore(settings.data_dir)
