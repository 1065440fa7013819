"""What agents that run as another user than the node may ask of it: what an agent needs, for itself. Nothing that operators do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any, Final

from agentkit.names import AgentId
from startup.errors import Refused
from startup.node.control_server import Asker, Handler
from startup.node.doors import Doors
from startup.plan.reconcile import Reconciler

#: Of docs/control.md. Who is where:
_TOLD: Final = frozenset({"directory", "names", "events", "ping"})
#: ... and what an agent says as itself, with its `id`.
_OWN: Final = frozenset(
    {"attach", "report", "lead", "resign", "watch_config", "config_taken", "sleep", "asleep", "awake", "kept_events"}
)
#: ... and what is remembered for as long as the connection lasts; a fleet of 1,000 agents has as many names.
_GO_ON: Final = frozenset({"directory", "lead", "watch_config"})
MAX_FOLLOWED: Final = 10_000


class OtherUsers:
    """Implements control_server.Guests."""

    def __init__(self, doors: Doors, core: Reconciler, handle: Handler) -> None:
        """`handle`: of those who may ask for everything."""
        self._doors = doors
        self._core = core
        self._handle = handle

    def uids(self) -> frozenset[int]:
        return self._doors.uids()

    def handler(self, uid: int) -> Handler:
        """Of one conversation."""
        return partial(self._serve, uid, count())

    def _serve(
        self, uid: int, asked: Iterator[int], asker: Asker, id: int, operation: str, arguments: Mapping[str, Any]
    ) -> Any:
        if operation in _GO_ON and next(asked) >= MAX_FOLLOWED:
            raise Refused("overloaded", f"{MAX_FOLLOWED:,} names are followed on this connection already")
        if operation in _OWN:
            self._check(uid, AgentId.parse(arguments["id"]))
        elif operation not in _TOLD:
            raise Refused("forbidden", f"{operation} is for the node's own user, and this is uid {uid}")
        answer = self._handle(asker, id, operation, arguments)
        if operation == "events":
            self._doors.renew()  # the relay may have begun just now
        return answer

    def _check(self, uid: int, id: AgentId) -> None:
        """A user speaks for agents that run as that user, and for no others."""
        p = self._core.processes.get(id)
        if p is None or self._doors.uid_of(p.spec.user) != uid:
            raise Refused("forbidden", f"{id} is no agent of uid {uid}")
