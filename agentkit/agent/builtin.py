"""Methods that every agent has. Their names hold a dot, which no author's method can."""

from __future__ import annotations

from typing import Any, Final

from agentkit.agent import policies
from agentkit.agent.decorators import Rpc
from agentkit.agent.handlers import Method
from agentkit.errors import ConfigError
from agentkit.observe.trace import MAX_SPANS

#: Asked by `Client.describe` and `agentkit describe`.
DESCRIBE: Final = "agentkit.describe"
#: Asked by `agentkit trace`.
SPANS: Final = "agentkit.spans"


async def _describe(agent: Any) -> dict[str, Any]:
    """What the agent is and which methods it has, with JSON Schemas of arguments and results."""
    return {
        "name": agent.name,
        "instance": agent.instance,
        "machine": agent.machine,
        "type": f"{type(agent).__module__}.{type(agent).__qualname__}",
        "doc": type(agent).__doc__ or "",
        "methods": {name: method.describe() for name, method in sorted(agent.methods.items())},
        **policies.told(agent),
    }


async def _spans(agent: Any, trace_id: str = "", limit: int = MAX_SPANS) -> list[dict[str, Any]]:
    """The last spans that it keeps, oldest first: of the traces whose id begins so, or all. Times in seconds."""
    here = f"{agent.machine}/{agent.instance}"
    return [{"agent": here, **told} for told in agent._wired.tracer.told(trace_id, limit)]


#: By name, to be merged with the author's. Made on import: a fork server pays for it once.
BUILTIN_METHODS: Final = {
    name: Method(name, function, Rpc(idempotent=True, priority="control"))
    for name, function in ((DESCRIBE, _describe), (SPANS, _spans))
}


def handle_request_of(cls: type) -> Method | None:
    """The author's own `handle_request(self, request: dict) -> dict`, which gets the plain verbs that no handler has."""
    function = getattr(cls, "handle_request", None)
    if function is None:
        return None
    method = Method("handle_request", function, Rpc())
    if len(method.parameters) != 1:
        raise ConfigError(
            at=f"{cls.__name__}.handle_request",
            got=f"{len(method.parameters)} parameters",
            want="one: the request, a dict",
        )
    return method
