"""What a node tells of itself and its machine: facts, how it is, what its agents cost, where their logs are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from agentkit._version import VERSION
from agentkit.clock import SYSTEM_CLOCK
from agentkit.names import AgentId
from startup.node import vitals
from startup.node.adoption import Found
from startup.node.events import NodeEvents
from startup.node.executor import Executor
from startup.node.hibernation.memory_budget import MemoryBudget
from startup.node.notify import NotifyServer
from startup.node.options import NodeOptions
from startup.node.store import Revisions
from startup.node.turns import Turns
from startup.node.zygote.keeper import ZygoteKeeper
from startup.plan.revision import CONTROL_VERSION


class NodeStatus:
    """Implements views.Here, and the part of operations.Owner that only tells."""

    def __init__(
        self,
        options: NodeOptions,
        revisions: Revisions,
        turns: Turns,
        executor: Executor,
        zygote: ZygoteKeeper,
        events: NodeEvents,
    ) -> None:
        self.started_s = SYSTEM_CLOCK.wall_s()
        self.notify: NotifyServer | None = None  #: once it listens
        self.trouble: Callable[[], str] = lambda: ""  #: what is wrong with this node's own folders
        self.found: Found | None = None  #: what this node took over when it started
        self.memory_budget: MemoryBudget | None = None  #: set by who wires both
        self._options = options
        self._revisions = revisions
        self._turns = turns
        self._executor = executor
        self._zygote = zygote
        self._events = events

    def facts(self) -> dict[str, Any]:
        """Who and where this node is."""
        places, revision = self._options.places, self._revisions.current
        return {
            "cluster": places.cluster,
            "machine": places.machine,
            "version": VERSION,
            "control_version": CONTROL_VERSION,
            "pid": os.getpid(),
            "file": revision.fleet.file if revision else self._options.file or None,
            "project_root": revision.fleet.root_on(places.machine) if revision else None,
            "run_dir": str(places.run),
            "state_dir": str(places.state),
            "keys": revision.fleet.keys if revision else "",
            "started_s": self.started_s,
            "upgrade_error": self._options.upgrade_error,
        }

    def vitals(self) -> dict[str, Any]:
        """How this node is."""
        return {
            "pid": os.getpid(),
            "uptime_s": SYSTEM_CLOCK.wall_s() - self.started_s,
            "memory_mb": vitals.pss_mb(os.getpid()),
            "zygote_pid": self._zygote.pid,
            "zygote_memory_mb": vitals.pss_mb(self._zygote.pid) if self._zygote.pid else None,
            "not_preloaded": dict(self._zygote.refused),
            "wakeups": vitals.wakeups(),
            "turns": self._turns.count,
            "limits": self._executor.bounds.facts(),
            "trouble": self.trouble() or vitals.no_room(self._options.places.state),
            "found": self.found.to_wire() if self.found else None,
            "memory_budget": self.memory_budget.facts() if self.memory_budget else None,
            "notifications_dropped": self.notify.dropped if self.notify else 0,
        }

    def own(self) -> dict[str, Any]:
        machine, revision = self._options.places.machine, self._revisions.summary()
        return {"machine": machine, "version": VERSION, "node": self.vitals(), "revision": revision}

    def pids(self) -> tuple[int | None, Mapping[str, int]]:
        return self._zygote.pid, {str(id): running.pid for id, running in self._executor.mains().items()}

    async def memory_mb(self) -> Mapping[str, float]:
        return await vitals.pss_of({str(id): running.pid for id, running in self._executor.mains().items()})

    def log_of(self, id: AgentId) -> str:
        return str(self._options.places.log(id.instance)) if id in self._turns.core.processes else ""

    def events_seen(self) -> dict[str, Any]:
        return self._events.seen(self._turns.core.processes.__contains__)
