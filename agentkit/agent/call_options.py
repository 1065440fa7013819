"""What a call may say of itself, whoever makes it."""

from __future__ import annotations

from typing import Final, TypedDict

from agentkit.errors import BadRequest
from agentkit.resilience.policy import Balance

#: Where a request says its idempotency key.
IDEMPOTENCY_KEY: Final = "idempotency_key"


class StreamOptions(TypedDict, total=False):
    """What a call with a stream of results may say of itself; each means what it does in `Caller.call`."""

    timeout: float | None
    attempts: int | None
    balance: Balance | None
    key: object


class CallOptions(StreamOptions, total=False):
    """What any other call may say."""

    idempotency_key: str | None
    fallback: object


def for_stream(options: CallOptions) -> StreamOptions:
    """`options` of a peer's calls, for one that streams. BadRequest: there is no second answer to keep, nor one to stand in."""
    for name in ("idempotency_key", "fallback"):
        if name in options:
            raise BadRequest(f"{name}= is for calls with one result: a stream of them has none")
    return options
