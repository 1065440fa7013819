"""Methods that every agent has. Their names hold a dot, which no author's method can."""

from __future__ import annotations

from typing import Any, Final

from agentkit.agent.handlers import Method, Rpc
from agentkit.errors import ConfigError

#: Asked by `Client.describe` and `agentkit describe`.
DESCRIBE: Final = "agentkit.describe"


async def _describe(agent: Any) -> dict[str, Any]:
    """What the agent is and which methods it has, with JSON Schemas of arguments and results."""
    return {
        "name": agent.name,
        "instance": agent.instance,
        "machine": agent.machine,
        "type": f"{type(agent).__module__}.{type(agent).__qualname__}",
        "doc": type(agent).__doc__ or "",
        "methods": {name: method.describe() for name, method in sorted(type(agent).methods.items())},
    }


#: By name, to be merged with the author's. Made on import: a fork server pays for it once.
BUILTIN_METHODS: Final = {DESCRIBE: Method(DESCRIBE, _describe, Rpc(idempotent=True, priority="control"))}


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
