"""What a request asks for, before anything runs: its method, checked arguments, the caller's role, how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agentkit.agent.context import Serving
from agentkit.agent.handlers import Method
from agentkit.agent.inbound_stream import streamed_arguments
from agentkit.agent.plain_verbs import PlainVerbs
from agentkit.clock import now_s
from agentkit.errors import BadRequest, DeadlineExceeded, UnknownMethod
from agentkit.observe.trace import TRACEPARENT, Span, Tracer
from agentkit.transport.peer import Inbound, Peer
from agentkit.wire import values
from agentkit.wire.attachments import unpack

if TYPE_CHECKING:
    from agentkit.security.roles import Holder


class Intake:
    """Of one dispatcher."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        fallback: Method | None,
        tracer: Tracer,
        identity: Callable[[Peer], Holder | None],
    ) -> None:
        """`fallback` gets every plain request that no method has. `identity`: whose key a caller came in with."""
        self._methods = methods
        self._plain = PlainVerbs(methods, fallback)
        self._tracer = tracer
        self._identity = identity
        self._next_key = 1

    def prepare(self, inbound: Inbound) -> Serving | None:
        """What shall run; None: it asks for the agent's health only. A CallError says why nothing shall."""
        if inbound.plain is not None:
            return self._prepare_plain(inbound)
        method = self._methods.get(inbound.method)
        if method is None:
            raise UnknownMethod(f"no method {inbound.method!r}", details={"methods": sorted(self._methods)})
        if method.options.role is not None:
            self._check_role(method.options.role, inbound)
        try:
            arguments = unpack(inbound.body, inbound.attachments)
        except values.Undecodable as exc:
            raise BadRequest(f"{inbound.method}: {exc}") from exc
        budget_ms = inbound.budget_ms
        timeout_s = method.options.timeout_s if budget_ms is None else budget_ms / 1000
        if inbound.flags or method.is_stream or method.stream_parameter is not None:
            streamed = streamed_arguments(method, inbound)
            return self._work(inbound, method, method.check(arguments) | streamed, timeout_s)
        return self._work(inbound, method, method.check(arguments), timeout_s)

    def span(self, inbound: Inbound, method: Method) -> Span | None:
        """Whoever calls has decided whether it is traced; for plain callers, who know nothing of it, that is done here."""
        tracer = self._tracer
        traceparent = inbound.meta.get(TRACEPARENT)
        if traceparent is not None:
            return tracer.serve(traceparent, method.name)
        if inbound.plain is not None and tracer.draw() < tracer.sample:
            return tracer.begin(method.name, "server")
        return None

    def _prepare_plain(self, inbound: Inbound) -> Serving | None:
        found = self._plain.find(inbound)
        if found is None:
            return None
        if found[0].options.role is not None:
            self._check_role(found[0].options.role, inbound)
        return self._work(inbound, *found)

    def _work(self, inbound: Inbound, method: Method, arguments: dict[str, Any], timeout_s: float) -> Serving:
        if timeout_s <= 0:
            raise DeadlineExceeded(f"{method.name}: time was up before it ran", retry_safe=True)
        key = self._next_key
        self._next_key = key + 1
        return Serving(key, inbound, method, arguments, now_s() + timeout_s)

    def _check_role(self, role: str, inbound: Inbound) -> None:
        """Forbidden unless the caller's key has `role`."""
        from agentkit.security.roles import forbidden, may

        holder = self._identity(inbound.peer)
        if not may(holder, role):
            raise forbidden(inbound.method, role, holder)
