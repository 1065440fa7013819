"""How every call begins, whoever makes it: its course, its span, and what travels beside its arguments."""

from __future__ import annotations

from typing import Any

from agentkit.agent.call_options import IDEMPOTENCY_KEY
from agentkit.agent.context import Serving, span_of_call
from agentkit.agent.course import Course
from agentkit.agent.routes import Board
from agentkit.clock import now_s
from agentkit.observe.trace import TRACEPARENT, Span, Tracer
from agentkit.resilience.policy import Balance


def begin(
    board: Board,
    tracer: Tracer,
    outer: Serving | None,
    target: str,
    method: str,
    *,
    timeout: float | None = None,
    attempts: int | None = None,
    balance: Balance | None = None,
    key: object = None,
    idempotency_key: str | None = None,
) -> tuple[Course, Span | None, dict[str, Any]]:
    """`outer`: the call in whose name this one is made. The options are those of `Caller.call`; ConfigError for a wrong one.

    The span is None where the call is not traced; the map is the `meta` of its REQUEST."""
    meta: dict[str, Any] = {}
    if idempotency_key is not None:
        meta[IDEMPOTENCY_KEY] = idempotency_key
        key = idempotency_key if key is None else key  # who keeps the answer is one instance
    outer_at_s = None if outer is None else outer.at_s
    course = Course(
        board, target, method, now_s(), timeout=timeout, outer_at_s=outer_at_s, attempts=attempts, balance=balance, key=key
    )  # fmt: skip
    span = span_of_call(tracer, outer, target, method)
    if span is not None:
        meta[TRACEPARENT] = span.traceparent
    return course, span, meta
