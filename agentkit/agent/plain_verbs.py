"""Which method a plain request means, and with which arguments (docs/protocol.md, "Plain requests")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentkit.agent.handlers import Method
from agentkit.errors import BadRequest, UnknownMethod
from agentkit.observe.log import get_logger
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S
from agentkit.transport.peer import Inbound
from agentkit.wire.plain import HEALTH_VERBS

log = get_logger("agentkit.dispatch")


class PlainVerbs:
    """The verbs that an agent understands."""

    def __init__(self, methods: Mapping[str, Method], fallback: Method | None) -> None:
        """`fallback` gets every verb that no method has."""
        self._methods = methods
        self._fallback = fallback
        self._lower = {name.lower(): name for name in methods}
        self._warned: set[tuple[str, str]] = set()

    def find(self, inbound: Inbound) -> tuple[Method, dict[str, Any], float] | None:
        """(method, checked arguments, limit in seconds); None where it asks for the agent's health. A CallError when nothing fits."""
        asked = inbound.plain
        assert asked is not None
        verb = asked.verb.lower()
        method = self._methods.get(asked.verb) or self._methods.get(self._lower.get(verb, ""))
        if method is None and verb in HEALTH_VERBS:
            return None
        if method is not None:
            if method.is_stream or method.stream_parameter is not None:
                raise BadRequest(f"{method.name} streams: a plain request can't; call it with agentkit.Client")
            arguments = asked.arguments
            unknown = arguments.keys() - method.names
            if unknown:
                self._warn_once(inbound.peer.name, method.name, unknown)
                arguments = {key: value for key, value in arguments.items() if key in method.names}
            return method, method.check(arguments), method.options.timeout_s
        if self._fallback is not None:
            return self._fallback, {self._fallback.parameters[0].name: asked.raw}, DEFAULT_TIMEOUT_S
        raise UnknownMethod(f"no method {asked.verb!r}", details={"methods": sorted(self._methods)})

    def _warn_once(self, caller: str, method: str, unknown: set[str]) -> None:
        if (caller, method) not in self._warned and len(self._warned) < 1000:
            self._warned.add((caller, method))
            log.warning(
                "plain.arguments_dropped", caller=caller or "unknown", method=method, dropped=sorted(unknown)[:10]
            )
