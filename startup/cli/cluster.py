"""All nodes of one cluster that this user reaches, as commands speak with them: ask, propose a revision, watch the rows."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from agentkit.directory.locate import find_node, node_files, run_root
from agentkit.errors import NoNode
from agentkit.names import AgentId
from startup.cli.common import author
from startup.cli.tail import last_lines
from startup.control import ANSWER_WITHIN_S, NodeConnection
from startup.errors import Conflict, NodeLost
from startup.node.paths import Places
from startup.plan.row import AgentRow

if TYPE_CHECKING:
    from startup.plan.revision import Revision

#: A node listens a few ms after its boot process has ended; this long is for a machine that is very busy.
LISTENS_WITHIN_S: Final = 15.0
#: How long `next` waits for more of what `select` has announced: nothing, but 0 would not even look.
_AT_ONCE_S: Final = 1e-4


class Cluster:
    """Open conversations, one per machine, in name order. A context manager."""

    def __init__(self, name: str, connections: Mapping[str, NodeConnection]) -> None:
        self.name = name
        self.connections = dict(sorted(connections.items()))

    @classmethod
    def find(cls, name: str | None) -> Self:
        """Of the cluster `name`, else of the one that is meant (startup.control.find_node). NoNode when none answers."""
        return cls.of(find_node(name).cluster)

    @classmethod
    def of(
        cls,
        name: str,
        opened: Mapping[str, NodeConnection] | None = None,
        *,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> Self:
        """Connected to every node of it that listens here; NoNode when none does. `opened`: what is connected already."""
        connections = dict(opened or {})
        for info in node_files(run_root(), name):
            if info.machine not in connections:
                with suppress(NoNode):
                    connections[info.machine] = NodeConnection.connect(info.control, timeout_s=answer_within_s)
        if not connections:
            raise NoNode(f"no node of cluster {name!r} answers here; `agentkit up` starts one")
        return cls(name, connections)

    def ask(self, operation: str, **arguments: Any) -> Any:
        """One node's answer: any of them knows the whole cluster."""
        return next(iter(self.connections.values())).ask(operation, **arguments)

    def ask_each(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Every node's answer, by machine. A node that goes away meanwhile is left out; NodeLost when all do."""
        answers = {}
        for machine, connection in self.connections.items():
            try:
                answers[machine] = connection.ask(operation, **arguments)
            except NodeLost:
                if len(self.connections) == 1:
                    raise
        return answers

    def status(self, *, memory: bool = False) -> tuple[list[dict[str, Any]], list[AgentRow]]:
        """The answers of all nodes, and every agent once: as its own node has it where that was asked."""
        answers = list(self.ask_each("status", memory=memory).values())
        asked = {answer["machine"] for answer in answers}
        rows: dict[AgentId, AgentRow] = {}
        for answer in answers:
            for row in map(AgentRow.from_wire, answer["agents"]):
                if row.id.machine == answer["machine"] or (row.id.machine not in asked and _is_newer(row, rows)):
                    rows[row.id] = row
        return answers, [rows[id] for id in sorted(rows)]

    def revision(self) -> Revision | None:
        """The newest that any node has; None before the first `up`."""
        from startup.plan.revision import Revision

        found = [Revision.from_wire(data) for data in self.ask_each("revision").values() if data is not None]
        return max(found, key=lambda revision: revision.number, default=None)

    def propose(self, revision: Revision, bases: Mapping[str, int] | None = None) -> Revision:
        """Hand `revision` to every node in name order, numbered behind all that is there; what they took.

        `bases`: the number that each machine is expected to have (default: asked for now). Conflict when one has moved on:
        machines before it in name order have taken the revision, and the next command of either author heals that."""
        if bases is None:
            bases = self.numbers()
        numbered = replace(revision, number=max(bases.values(), default=0) + 1, author=author(), time_s=time.time())
        wire = numbered.to_wire()
        taken: list[str] = []
        for machine, connection in self.connections.items():
            try:
                connection.ask("propose", expected=bases.get(machine, 0), revision=wire)
            except Conflict as exc:
                done = f" ({', '.join(taken)} took it; run the command again)" if taken else ""
                raise Conflict(f"{machine}: {exc}{done}", exc.details) from exc
            taken.append(machine)
        return numbered

    def numbers(self) -> dict[str, int]:
        """Each machine's revision number; 0: none."""
        return {machine: number_of(hello) for machine, hello in self.ask_each("hello").items()}

    def watch(self) -> Watch:
        """The rows from now on, over conversations of their own."""
        return Watch({machine: str(Places.of(self.name, machine).control) for machine in self.connections})

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Watch:
    """The rows of a whole cluster, kept current. Each machine's are taken from its own node where that is watched: what other
    nodes say of them is older by a message."""

    def __init__(self, controls: Mapping[str, str]) -> None:
        """`controls`: machine -> path of its node's control socket. NoNode when one does not answer."""
        self.rows: dict[AgentId, AgentRow] = {}
        self.lost: dict[str, float] = {}  #: machines whose node has gone away, since when
        self.changed_s = time.monotonic()  #: when a row last changed
        self.controls = dict(controls)  #: machine -> path of its node's control socket
        self._connections: dict[str, NodeConnection] = {}
        self._events: dict[str, Iterator[Any]] = {}
        try:
            for machine in controls:
                self._open(machine)
        except BaseException:
            self.close()
            raise

    def revive(self) -> None:
        """Try to watch again the nodes that went away: a zygote starts them again within seconds."""
        for machine in list(self.lost):
            try:
                self._open(machine)
            except (NoNode, NodeLost):
                continue

    def _open(self, machine: str) -> None:
        connection = NodeConnection.connect(self.controls[machine])
        if machine in self._connections:
            self._connections[machine].close()
        self._connections[machine] = connection
        self._events[machine] = connection.events("watch", tick_s=_AT_ONCE_S)
        self.lost.pop(machine, None)
        self._take(machine)  # the first step sends the question

    def wait(self, timeout_s: float | None) -> bool:
        """Until a row changes or a node goes away, at most `timeout_s`; whether that happened."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            sources = {
                self._connections[machine].fileno(): machine for machine in self._events if machine not in self.lost
            }
            poll = select.poll()
            for source in sources:
                poll.register(source, select.POLLIN)
            ready = poll.poll(None if left_s is None else left_s * 1000)
            if not ready:
                return False
            changed = [self._take(sources[source]) for source, _ in ready]
            if True in changed:
                return True

    def until(self, done: Callable[[Mapping[AgentId, AgentRow]], bool], timeout_s: float | None) -> bool:
        """Wait until `done(rows)`; False when `timeout_s` passes first, or every node has gone."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not done(self.rows):
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if (left_s is not None and left_s <= 0) or len(self.lost) == len(self._events):
                return False
            self.wait(left_s)
        return True

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, machine: str) -> bool:
        """Everything that has arrived from one node; whether it changed anything."""
        changed = False
        for event in self._events[machine]:
            if event is None:
                return changed
            for row in self._rows_of(machine, event):
                if self.rows.get(row.id) != row:
                    self.rows[row.id] = row
                    self.changed_s = time.monotonic()
                    changed = True
        self.lost[machine] = time.monotonic()
        return True

    def _rows_of(self, machine: str, event: Mapping[str, Any]) -> Iterator[AgentRow]:
        for wire in event["rows"]:
            owner = wire["id"].partition("/")[0]
            if owner == machine or owner not in self.controls:
                yield AgentRow.from_wire(wire)


def number_of(hello: Mapping[str, Any]) -> int:
    """The revision that a node has according to its `hello`; 0: none."""
    return int(hello["revision"]["number"]) if hello["revision"] else 0


def _is_newer(row: AgentRow, rows: Mapping[AgentId, AgentRow]) -> bool:
    return row.id not in rows or row.version > rows[row.id].version


def connect_when_listening(places: Places, *, within_s: float = LISTENS_WITHIN_S) -> NodeConnection:
    """A conversation with a node that is just starting. NoNode with the end of its log when it does not come."""
    deadline_s = time.monotonic() + within_s
    pause_s = 0.001
    while True:
        try:
            return NodeConnection.connect(places.control)
        except NoNode as exc:
            if time.monotonic() > deadline_s:
                words = "\n  ".join(last_lines(places.logs / "node.log", 10))
                raise NoNode(f"{exc}; its log {places.logs / 'node.log'} ends:\n  {words}") from exc
        time.sleep(pause_s)
        pause_s = min(0.02, pause_s * 1.5)
