"""The one error tree.

    AgentkitError
    ├── ConfigError              a setting is wrong: place, value, expectation, fix
    ├── StartupError             an agent could not be brought up (its own code raised, or took too long)
    ├── NoNode                   no node of the cluster answers on this machine
    ├── StateError               an agent's state: StateNotSaved (StateFenced: another incarnation has it), StateDamaged, StateUnreachable
    ├── PoolFull, PoolClosed     no raw socket can be lent: all are in use, or the agent stops
    ├── NotRunning               something needs the running agent, and that is not running yet, or any more
    ├── LeadershipLost           the term in which this agent led is over
    └── CallError                every way in which a call can end without an answer
        ├── not run, certainly:  AgentUnknown, Unreachable, Unauthenticated, Forbidden, BadRequest, UnknownMethod,
        │                        Overloaded, Draining, TooLarge, UnsupportedVersion
        ├── run, or perhaps run: DeadlineExceeded, CallCancelled, PeerLost
        └── run and failed:      NotFound, HandlerError, InternalError

A CallError has the wire code of AK1 (docs/protocol.md), `retry_safe` (the handler certainly did not run, or may run twice)
and `details`. Codes cross the wire, classes never do: `from_wire` builds the class again on the caller's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final


class AgentkitError(Exception):
    """Whatever agentkit raises on purpose."""


class ConfigError(AgentkitError, ValueError):
    """A setting that can't be used. The four facts are attributes; the sentence is built from them."""

    def __init__(self, *, at: str, got: object, want: str, fix: str = "") -> None:
        super().__init__(f"{at}: got {got!r}, want {want}" + (f"; {fix}" if fix else ""))
        self.at, self.got, self.want, self.fix = at, got, want, fix


class StartupError(AgentkitError):
    """An agent did not come up: `on_start` raised or hung, a check failed, its class could not be loaded."""


class NoNode(AgentkitError):
    """No node answers: none runs for this cluster here, or several do and none was chosen. The CLI exits with 4."""


class StateError(AgentkitError):
    """Something is wrong with the state that an agent keeps from one life to the next."""


class StateNotSaved(StateError):
    """The state as it is now is not kept; what was saved before still is. The text says why."""


class StateFenced(StateNotSaved):
    """Another incarnation of the agent has the state: what this one would save is refused."""

    def __init__(self, where: str, incarnation: int, holder: int) -> None:
        super().__init__(
            f"{where}: incarnation {holder} of this agent has it, and this is incarnation {incarnation}, which may not write"
        )
        self.incarnation, self.holder = incarnation, holder


class StateDamaged(StateError):
    """What was saved can't be read. An agent does not start without it: it never begins empty unasked."""


class StateUnreachable(StateError):
    """Where states are kept can't be reached now."""


class PoolFull(AgentkitError, TimeoutError):
    """All sockets of a pool were in use for as long as the lease could wait."""

    def __init__(self, endpoint: str, limit: int) -> None:
        super().__init__(
            f"no socket for {endpoint}: all {limit} of the pool are in use; hold leases for less long, wait longer (timeout=), or make a "
            f"SocketPool with a higher limit (on an event loop a lease does not wait: use a thread)"
        )
        self.endpoint, self.limit = endpoint, limit


class PoolClosed(AgentkitError):
    """A socket was asked for after its pool was closed: the agent has stopped."""


class NotRunning(AgentkitError, RuntimeError):
    """Something that needs the running agent was used before `on_start` or after `on_stop`."""


class LeadershipLost(AgentkitError):
    """The term is over: another agent may lead from now on. Raised by `async with self.leader(name)` when its body was cancelled."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: this agent does not lead any more: {why}")
        self.name, self.why = name, why


class ResourceFailed(AgentkitError):
    """A resource could not be loaded: its loader raised (`__cause__`). The next use tries again."""


class ResourcesFull(AgentkitError, TimeoutError):
    """There was no room for a resource for as long as a load may wait: what is in memory is in use."""


class CallError(AgentkitError):
    """A call that ended without an answer."""

    code: ClassVar[str] = "internal"
    #: What `retry_safe` is unless the instance knows better.
    retry_safe_by_default: ClassVar[bool] = False
    #: Told by the peer, not found out here: `unreachable` is then about somebody whom the peer's handler called.
    from_peer: bool = False

    def __init__(
        self, message: str = "", *, retry_safe: bool | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message or self.code)
        self.message: str = message or self.code
        self.retry_safe: bool = self.retry_safe_by_default if retry_safe is None else retry_safe
        self.details: Mapping[str, Any] = details or {}


class AgentUnknown(CallError):
    """No agent of that name is known, or the name is ambiguous. `directory_stale`: the directory could not be asked."""

    code = "no_such_agent"
    retry_safe_by_default = True

    @property
    def directory_stale(self) -> bool:
        return bool(self.details.get("directory_stale", False))


class Unreachable(CallError):
    """The agent is known but no connection to it came about; nothing was sent."""

    code = "unreachable"
    retry_safe_by_default = True


class Unauthenticated(CallError):
    """The peer does not accept who we are (or we can't prove it)."""

    code = "unauthenticated"


class Forbidden(CallError):
    """The peer knows who we are and does not allow this."""

    code = "forbidden"


class BadRequest(CallError):
    """The arguments do not fit the method's annotations, or the frames are no request; the handler did not run."""

    code = "bad_request"


class UnknownMethod(CallError):
    """The agent has no such method; `details["methods"]` lists those it has."""

    code = "unknown_method"


class NotFound(CallError):
    """For handlers to raise: the thing asked for does not exist."""

    code = "not_found"


class Overloaded(CallError):
    """Refused before it ran because too much runs already; try again after `retry_after_ms`."""

    code = "overloaded"
    retry_safe_by_default = True

    @property
    def retry_after_ms(self) -> int:
        told = self.details.get("retry_after_ms", 100)
        return int(min(max(told, 0), 3_600_000)) if isinstance(told, int | float) and told == told else 100


class Draining(CallError):
    """The agent is going away and did not run this; another instance, or its successor, will."""

    code = "draining"
    retry_safe_by_default = True


class DeadlineExceeded(CallError, TimeoutError):
    """The time given ran out. The handler may have run."""

    code = "deadline_exceeded"


class CallCancelled(CallError):
    """The handler was cancelled: by the caller's going away, or by its agent's stopping."""

    code = "cancelled"


class PeerLost(CallError, ConnectionError):
    """The connection went after the request was sent: nobody knows whether the handler ran."""

    code = "peer_lost"


class TooLarge(CallError):
    """Request or reply exceed the peer's stated limit; nothing was sent."""

    code = "too_large"

    @classmethod
    def frame(cls, what: str, size_bytes: int, limit_bytes: int) -> TooLarge:
        """The usual case, with its numbers."""
        return cls(
            f"{what} is {size_bytes:,} bytes, the peer takes {limit_bytes:,}; send it in parts",
            details={"size_bytes": size_bytes, "limit_bytes": limit_bytes},
        )


class UnsupportedVersion(CallError):
    """The peer speaks another version of AK1."""

    code = "unsupported_version"
    retry_safe_by_default = True


class HandlerError(CallError):
    """The handler raised. `type` names the exception's class there; `traceback` is set when AGENTKIT_DEBUG is."""

    code = "handler_error"

    @property
    def type(self) -> str:
        return str(self.details.get("type", ""))

    @property
    def traceback(self) -> str | None:
        return self.details.get("traceback")


class InternalError(CallError):
    """agentkit itself failed on the other side; its log says where."""

    code = "internal"


#: Wire code -> class.
BY_CODE: Final[Mapping[str, type[CallError]]] = {
    cls.code: cls
    for cls in (
        AgentUnknown, Unreachable, Unauthenticated, Forbidden, BadRequest, UnknownMethod, NotFound, Overloaded, Draining,
        DeadlineExceeded, CallCancelled, PeerLost, TooLarge, UnsupportedVersion, HandlerError, InternalError,
    )
}  # fmt: skip


def from_wire(code: str, message: str, retry_safe: bool, details: Mapping[str, Any]) -> CallError:
    """The exception for an ERROR message; a code from a newer peer becomes InternalError and keeps its name in the text."""
    cls = BY_CODE.get(code)
    if cls is None:
        cls, message = InternalError, f"{code}: {message}"
    error = cls(message, retry_safe=retry_safe, details=details)
    error.from_peer = True
    return error
