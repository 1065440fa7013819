"""What the launcher itself refuses or loses, beside agentkit's own errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentkit.errors import AgentkitError


class Refused(AgentkitError):
    """A node does not do what it was asked: `code` says why in one word, for programs."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, dict(details or {})


class Conflict(Refused):
    """Somebody else's revision came first; `details["number"]` is the node's current one."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__("conflict", message, details)


class NodeLost(AgentkitError, ConnectionError):
    """The node went away in the middle of a conversation; what was asked may have been done."""


class NodeRuns(AgentkitError):
    """Another node of this cluster and machine holds the lock; `pid` is its process, when it could be read."""

    def __init__(self, place: str, pid: int | None) -> None:
        super().__init__(
            f"a node of {place} runs already" + (f" (pid {pid})" if pid else "") + "; `agentkit status` shows it"
        )
        self.pid = pid


class MachineTrouble(AgentkitError):
    """Another machine's node can't be had; the others come up without it."""

    def __init__(self, machine: str, host: str, step: str, found: str, fix: str) -> None:
        super().__init__(f"{machine} ({host}): {step}: {found}" + (f"; {fix}" if fix else ""))
        self.machine, self.host, self.step, self.found, self.fix = machine, host, step, found, fix

    def to_wire(self) -> dict[str, str]:
        return {
            "machine": self.machine,
            "host": self.host,
            "step": self.step,
            "reason": self.found,
            "fix": self.fix,
        }
