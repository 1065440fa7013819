"""What can be asked of a node, one method per operation. Names, arguments and results: docs/control.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from agentkit.clock import SYSTEM_CLOCK
from agentkit.errors import BadRequest
from agentkit.names import AgentId, is_loopback, matching
from startup.errors import Refused
from startup.node.control_server import Asker, Telling
from startup.node.executor import Executor
from startup.node.feeds import Feeds
from startup.node.fits import check_fit
from startup.node.keys import NodeKeys
from startup.node.mesh.mesh import Mesh
from startup.node.node_status import NodeStatus
from startup.node.store import Revisions
from startup.node.table import ClusterTable
from startup.node.turns import Turns
from startup.node.views import Views
from startup.plan.revision import Revision


class Owner(Protocol):
    """The node itself, as far as operations need it (node.Node)."""

    is_ending: bool

    def accept(self, revision: Revision, before: Revision | None, *, force_move: bool) -> None:
        """Act on a revision that was just stored in the place of `before`. `force_move`: agents that it moves here from machines
        that do not answer are started all the same."""
        ...

    def leave(self) -> None:
        """This machine's agents stop, then the node."""
        ...


class Operations:
    """The `handle` of a ControlServer."""

    def __init__(
        self,
        owner: Owner,
        node_status: NodeStatus,
        turns: Turns,
        executor: Executor,
        table: ClusterTable,
        feeds: Feeds,
        revisions: Revisions,
        mesh: Mesh,
        views: Views,
        keys: NodeKeys,
        *,
        more: Mapping[str, Callable[[Mapping[str, Any]], Any]] | None = None,
        telling: Mapping[str, Callable[[Asker, int, Mapping[str, Any]], Telling]] | None = None,
    ) -> None:
        """`more`: operations that others perform. `telling`: those that go on telling."""
        self._owner = owner
        self._node_status = node_status
        self._turns = turns
        self._core = turns.core
        self._executor = executor
        self._table = table
        self._feeds = feeds
        self._revisions = revisions
        self._mesh = mesh
        self._views = views
        self._keys = keys
        self._operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "hello": self._hello,
            "ping": lambda _: {"time_s": SYSTEM_CLOCK.wall_s()},
            "propose": self._propose,
            "restart": self._restart,
            "retry": self._retry,
            "status": self._status,
            "names": self._names,
            "stop_node": self._stop_node,
            "revision": self._revision,
            "revisions": self._kept,
            "lend": self._lend,
            **views.operations,
            **keys.operations,
            **(more or {}),
        }
        self._telling = {"watch_keys": lambda asker, number, _: keys.watch(asker, number), **(telling or {})}

    def handle(self, conversation: Asker, id: int, operation: str, arguments: Mapping[str, Any]) -> Any:
        """A result, an awaitable of one, or a Telling."""
        if operation == "watch":
            self._feeds.watch(conversation, id)
            return Telling(lambda: self._feeds.unwatch(conversation, id))
        if operation == "directory":
            name = str(arguments["name"])
            self._feeds.follow(conversation, id, name)
            return Telling(lambda: self._feeds.unfollow(conversation, id, name))
        if operation in self._telling:
            return self._telling[operation](conversation, id, arguments)
        perform = self._operations.get(operation)
        if perform is None:
            known = ", ".join(sorted([*self._operations, "watch", "directory", *self._telling]))
            raise BadRequest(f"no operation {operation!r}; there are {known}")
        return perform(arguments)

    def _hello(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._node_status.facts(), "revision": self._revisions.summary()}

    def _propose(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._owner.is_ending:
            raise Refused("ending", "this node is on its way out; try again when it is gone")
        revision = Revision.from_wire(arguments["revision"])
        check_binding(revision)
        before = self._revisions.current
        if (
            before is not None
            and before.note
            and before.number == revision.number
            and before.digest() == revision.digest()
        ):
            return {"number": revision.number}  # undone here already, as this machine heard of it from another
        if (
            before is None or before.fleet != revision.fleet
        ):  # what is taken already may be stopped and started in parts
            check_fit(revision, self._core.machine)
        self._keys.use(revision.fleet)
        self._revisions.propose(int(arguments["expected"]), revision, arguments["revision"])
        self._owner.accept(revision, before, force_move=bool(arguments.get("force_move")))
        return {"number": revision.number}

    def _revision(self, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """The whole of it: what a command that changes a part of it starts from. `number`: an earlier one, if it is kept."""
        if (number := arguments.get("number")) is not None:
            return self._revisions.stored(int(number))
        return self._revisions.current.to_wire() if self._revisions.current else None

    def _kept(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"numbers": self._revisions.kept()}

    def _restart(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        ids: dict[AgentId, None] = {}
        for text in arguments["agents"]:
            found = matching(str(text), self._core.processes, here=self._core.machine)
            ids.update(dict.fromkeys(found))
        restarted = self._core.restart(ids, self._turns.now_s())
        self._turns.soon()
        return {"agents": [str(id) for id in restarted]}

    def _retry(self, _: Mapping[str, Any]) -> dict[str, Any]:
        retried = self._core.retry(self._turns.now_s())
        self._turns.soon()
        return {"agents": [str(id) for id in retried]}

    async def _status(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`memory`: of agents, measured now; `others`: also of other machines, and what these tell of their nodes, but those of `but`."""
        measured, asks = bool(arguments.get("memory")), bool(arguments.get("others"))
        but = tuple(arguments.get("but") or ()) if asks else None
        memory, others = await self._views.nodes(memory=measured, but=but)
        return {
            **self._node_status.own(),
            "peers": self._mesh.circle.states(),
            "silent_s": self._mesh.circle.silent_s(),
            "revisions": {self._core.machine: self._revisions.number, **self._mesh.circle.numbers()},
            "digests": {machine: digest for machine, (_, digest) in self._mesh.circle.revisions().items()},
            "others": others,
            "agents": [row.to_wire() | {"memory_mb": memory.get(str(row.id))} for row in self._table.rows()],
        }

    def _names(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"ids": [str(row.id) for row in self._table.rows()]}

    async def _lend(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The slot's own process stops, `pid` becomes its next; answered once it has been handed everything."""
        id = AgentId.parse(arguments["id"])
        loan = self._executor.forks.lending.ask(id, int(arguments["pid"]), str(arguments["socket"]))
        try:
            if not self._core.restart([id], self._turns.now_s(), may_roll=False):
                raise Refused("not_wanted", f"{id}: {self._core.desired.why_not(id) or 'not an agent of this machine'}")
            self._turns.soon()
            return await loan.handed
        finally:
            self._executor.forks.lending.end(loan)

    def _stop_node(self, _: Mapping[str, Any]) -> dict[str, Any]:
        self._owner.leave()
        return {}


def check_binding(revision: Revision) -> None:
    """Refused when something would listen beyond loopback without keys, and nobody wrote that this is meant."""
    fleet = revision.fleet
    exposed = [f"{machine.name} ({machine.host})" for machine in fleet.machines if not is_loopback(machine.host)]
    if fleet.security == "loopback" and exposed:
        raise Refused(
            "security",
            f"{', '.join(exposed)} would listen beyond loopback without encryption; "
            "make keys (`agentkit keys init`) and name their folder (`security: {keys: FOLDER}`), give loopback addresses, or write "
            "`security: none` if everybody there may connect",
        )
