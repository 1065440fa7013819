"""What a node is told to do: small values, performed by `startup.node`, compared by tests. No imports of effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentkit.names import AgentId, Incarnation


@dataclass(frozen=True, slots=True)
class OpenListeners:
    """Bind the ports of a slot (nothing to do for `sockets: self`, or when they are open)."""

    id: AgentId


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """Give the ports back: nobody will serve them for a while, so callers should be refused rather than wait."""

    id: AgentId


@dataclass(frozen=True, slots=True)
class LieDown:
    """Nobody serves the slot's sockets: watch them, answer for it, and tell `wake` of the first connection, until it is forked or its
    ports are given back."""

    id: AgentId


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork the slot's process; answered with `forked` or `fork_failed`."""

    id: AgentId


@dataclass(frozen=True, slots=True)
class ForkBeside:
    """Fork a successor on the sockets of the process that serves, held back by a gate; answered like `Fork`."""

    id: AgentId


@dataclass(frozen=True, slots=True)
class Release:
    """The other process of the slot is gone: a successor's gate opens. Nothing to do for a process without one."""

    id: AgentId
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class ProbeReady:
    """The process can't notify: probe it as its spec says until it is ready."""

    id: AgentId


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM: it shall go, and has its grace period for that. `successor`: who takes new connections from now on, so it does not:
    one that serves, and answers on the health port, too, or one that waits."""

    id: AgentId
    incarnation: Incarnation
    successor: Literal["", "serves", "waits"] = ""


@dataclass(frozen=True, slots=True)
class Abort:
    """SIGABRT: it is stuck; all its stacks land in its log on the way out."""

    id: AgentId
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to whatever is left of it."""

    id: AgentId
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Configure:
    """Tell it the config of the spec that is offered to it; answered with reconfigure.taken or refused."""

    id: AgentId
    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class ProbeExternal:
    """Somebody waits for this external: probe it until it answers; answered with `external_answered`."""

    name: str


Action: TypeAlias = (
    OpenListeners
    | CloseListeners
    | LieDown
    | Fork
    | ForkBeside
    | Release
    | ProbeReady
    | Terminate
    | Abort
    | Kill
    | Configure
    | ProbeExternal
)
