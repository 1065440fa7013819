"""agentkit: a ZeroMQ peer-to-peer agent runtime. Everything that agent authors need is importable from here.

from agentkit import BaseAgent, rpc

class Greeter(BaseAgent):
    @rpc
    async def greet(self, name: str) -> str:
        return f"hello {name}"
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from agentkit._version import VERSION

__version__: Final = VERSION

if TYPE_CHECKING:
    from agentkit.agent.base import BaseAgent as BaseAgent
    from agentkit.agent.decorators import every as every
    from agentkit.agent.decorators import health_check as health_check
    from agentkit.agent.decorators import rpc as rpc
    from agentkit.agent.fallbacks import LAST_ANSWER as LAST_ANSWER
    from agentkit.agent.fallbacks import fallback as fallback
    from agentkit.agent.hibernation.wake_locks import keeps_awake as keeps_awake
    from agentkit.agent.leading import Leader as Leader
    from agentkit.agent.leading import Term as Term
    from agentkit.agent.resources import resource as resource
    from agentkit.agent.subscriptions import subscribe as subscribe
    from agentkit.client import BlockingClient as BlockingClient
    from agentkit.client import Client as Client
    from agentkit.errors import (
        AgentkitError as AgentkitError,
    )
    from agentkit.errors import (
        AgentUnknown as AgentUnknown,
    )
    from agentkit.errors import (
        BadRequest as BadRequest,
    )
    from agentkit.errors import (
        CallCancelled as CallCancelled,
    )
    from agentkit.errors import (
        CallError as CallError,
    )
    from agentkit.errors import (
        ConfigError as ConfigError,
    )
    from agentkit.errors import (
        DeadlineExceeded as DeadlineExceeded,
    )
    from agentkit.errors import (
        Draining as Draining,
    )
    from agentkit.errors import (
        Forbidden as Forbidden,
    )
    from agentkit.errors import (
        HandlerError as HandlerError,
    )
    from agentkit.errors import (
        InternalError as InternalError,
    )
    from agentkit.errors import (
        LeadershipLost as LeadershipLost,
    )
    from agentkit.errors import (
        NoNode as NoNode,
    )
    from agentkit.errors import (
        NotFound as NotFound,
    )
    from agentkit.errors import (
        NotRunning as NotRunning,
    )
    from agentkit.errors import (
        Overloaded as Overloaded,
    )
    from agentkit.errors import (
        PeerLost as PeerLost,
    )
    from agentkit.errors import (
        PoolClosed as PoolClosed,
    )
    from agentkit.errors import (
        PoolFull as PoolFull,
    )
    from agentkit.errors import (
        ResourceFailed as ResourceFailed,
    )
    from agentkit.errors import (
        ResourcesFull as ResourcesFull,
    )
    from agentkit.errors import (
        StartupError as StartupError,
    )
    from agentkit.errors import (
        StateError as StateError,
    )
    from agentkit.errors import (
        StateFenced as StateFenced,
    )
    from agentkit.errors import (
        StateNotSaved as StateNotSaved,
    )
    from agentkit.errors import (
        TooLarge as TooLarge,
    )
    from agentkit.errors import (
        Unauthenticated as Unauthenticated,
    )
    from agentkit.errors import (
        UnknownMethod as UnknownMethod,
    )
    from agentkit.errors import (
        Unreachable as Unreachable,
    )
    from agentkit.errors import (
        UnsupportedVersion as UnsupportedVersion,
    )
    from agentkit.events.delivery import Delivery as Delivery
    from agentkit.events.registry import Event as Event
    from agentkit.names import AgentId as AgentId
    from agentkit.resilience.deadline import Deadline as Deadline
    from agentkit.resilience.policy import CallPolicy as CallPolicy
    from agentkit.resilience.policy import ServePolicy as ServePolicy
    from agentkit.resources.pool import ResourcePool as ResourcePool
    from agentkit.resources.pool import ResourceStatistics as ResourceStatistics
    from agentkit.settings import AgentConfig as AgentConfig
    from agentkit.state.model import AgentState as AgentState
    from agentkit.transport.pool import PoolStatistics as PoolStatistics
    from agentkit.transport.pool import SocketPool as SocketPool
    from agentkit.wire.shared import Shared as Shared

#: Public name -> where it lives. Imported on first use: a program that needs only names and errors (the command line, which must
#: answer in 100 ms) does not pay 250 ms for ZeroMQ and pydantic.
_HOMES: Final = {
    # authors' classes and marks
    "BaseAgent": "agentkit.agent.base",
    "NotRunning": "agentkit.errors",
    "every": "agentkit.agent.decorators",
    "keeps_awake": "agentkit.agent.hibernation.wake_locks",
    "fallback": "agentkit.agent.fallbacks",
    "health_check": "agentkit.agent.decorators",
    "rpc": "agentkit.agent.decorators",
    "subscribe": "agentkit.agent.subscriptions",
    "AgentConfig": "agentkit.settings",
    # what an agent remembers
    "AgentState": "agentkit.state.model",
    "StateError": "agentkit.errors",
    "StateFenced": "agentkit.errors",
    "StateNotSaved": "agentkit.errors",
    # events
    "Delivery": "agentkit.events.delivery",
    "Event": "agentkit.events.registry",
    "CallPolicy": "agentkit.resilience.policy",
    "LAST_ANSWER": "agentkit.agent.fallbacks",
    "ServePolicy": "agentkit.resilience.policy",
    # one leader among many
    "Leader": "agentkit.agent.leading",
    "LeadershipLost": "agentkit.errors",
    "Term": "agentkit.agent.leading",
    # calls from scripts
    "BlockingClient": "agentkit.client",
    "Client": "agentkit.client",
    # large data
    "Shared": "agentkit.wire.shared",
    # what is loaded when it is first used
    "ResourceFailed": "agentkit.errors",
    "ResourcePool": "agentkit.resources.pool",
    "ResourceStatistics": "agentkit.resources.pool",
    "ResourcesFull": "agentkit.errors",
    "resource": "agentkit.agent.resources",
    # raw sockets
    "PoolClosed": "agentkit.errors",
    "PoolFull": "agentkit.errors",
    "PoolStatistics": "agentkit.transport.pool",
    "SocketPool": "agentkit.transport.pool",
    # what a call can end with
    "AgentkitError": "agentkit.errors",
    "AgentUnknown": "agentkit.errors",
    "BadRequest": "agentkit.errors",
    "CallCancelled": "agentkit.errors",
    "CallError": "agentkit.errors",
    "ConfigError": "agentkit.errors",
    "DeadlineExceeded": "agentkit.errors",
    "Draining": "agentkit.errors",
    "Forbidden": "agentkit.errors",
    "HandlerError": "agentkit.errors",
    "InternalError": "agentkit.errors",
    "NoNode": "agentkit.errors",
    "NotFound": "agentkit.errors",
    "Overloaded": "agentkit.errors",
    "PeerLost": "agentkit.errors",
    "StartupError": "agentkit.errors",
    "TooLarge": "agentkit.errors",
    "Unauthenticated": "agentkit.errors",
    "UnknownMethod": "agentkit.errors",
    "Unreachable": "agentkit.errors",
    "UnsupportedVersion": "agentkit.errors",
    # values
    "AgentId": "agentkit.names",
    "Deadline": "agentkit.resilience.deadline",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'agentkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
