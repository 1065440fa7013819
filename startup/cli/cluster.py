"""All nodes of one cluster that this user reaches, as commands speak with them: ask, propose a revision, watch the rows.

Any node answers for the whole cluster; what changes something has to reach the node of every machine. Those that it does not
reach are in `missing`, with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agentkit.directory.base import INBOX_LOCAL
from agentkit.directory.locate import default_cluster, find_node, node_files, run_root, running_nodes
from agentkit.errors import NoNode
from agentkit.names import AgentId
from startup.cli.common import author, note
from startup.cli.watch import Watch
from startup.control import ANSWER_WITHIN_S, Door, Talk, UnixDoor
from startup.errors import Conflict, NodeLost
from startup.node.paths import Places
from startup.plan.phase import Phase
from startup.plan.row import CLOCKS_AGREE_S, AgentRow
from startup.view.words import duration

if TYPE_CHECKING:
    from startup.plan.revision import Revision


class Cluster:
    """Open conversations, one per machine, in name order. A context manager."""

    def __init__(
        self, name: str, doors: Mapping[str, Door], connections: Mapping[str, Talk], here: Collection[str]
    ) -> None:
        self.name = name
        self.doors = dict(sorted(doors.items()))
        self.connections = dict(sorted(connections.items()))
        self.here = frozenset(here)  #: machines whose nodes, and files, are on this host
        self.missing: dict[str, str] = {}  #: machines whose nodes were not reached, or were lost on the way, and why
        self.has_told: frozenset[str] = frozenset()  #: those of them that the operator has read of already
        self._stack = ExitStack()  #: what goes with the conversations

    @classmethod
    def find(cls, name: str | None) -> Self:
        """Of the cluster `name`, else of the one that is meant (agentkit.directory.locate.find_node): the nodes of this host, which
        answer for all; where there are none, those of other machines. NoNode when none answers."""
        try:
            return cls.of(find_node(name).cluster)
        except NoNode as exc:
            if (meant := name or default_cluster(Path.cwd())) is None or running_nodes(meant):
                raise
            words: list[str] = []
            try:
                return cls.reach(meant, words.append)
            except NoNode:
                raise (NoNode(f"{exc}\n" + "\n".join(words)) if words else exc) from None

    @classmethod
    def reach(cls, name: str | None, tell: Callable[[str], None] = note) -> Self:
        """The same with the nodes of all machines: what changes something has to be told to each. Those that are not reached are
        `missing`, and the reasons are told. NoNode when none is."""
        from startup.cli.elsewhere import Elsewhere, elsewhere, known_machines

        with ExitStack() as stack:
            try:
                name = find_node(name).cluster
            except NoNode:
                name = name or default_cluster(Path.cwd())
                if name is None or not (far := elsewhere(known_machines(name))):
                    raise
            else:
                far = elsewhere(known_machines(name))
            others = Elsewhere(stack, name, far)
            others.begin_find()
            found = others.finish(tell)
            cluster = cls.of(name, doors=found.doors)
            cluster.missing |= {machine: str(trouble) for machine, trouble in found.troubles.items()}
            cluster.has_told = frozenset(found.troubles)
            for machine in far:
                if machine.name not in cluster.connections:
                    cluster.missing.setdefault(str(machine.name), "no node runs there")
            cluster._stack = stack.pop_all()
            return cluster
        raise AssertionError("unreachable")  # ExitStack swallows nothing

    @classmethod
    def of(
        cls,
        name: str,
        opened: Mapping[str, Talk] | None = None,
        *,
        doors: Mapping[str, Door] | None = None,
        answer_within_s: float = ANSWER_WITHIN_S,
    ) -> Self:
        """Connected to every node of it on this host, and through `doors` to those of other machines; NoNode when none answers.
        `opened`: what is connected already, on this host."""
        connections: dict[str, Talk] = dict(opened or {})
        ways: dict[str, Door] = {machine: UnixDoor(str(Places.of(name, machine).control)) for machine in connections}
        missing: dict[str, str] = {}
        here = set(connections)
        for info in node_files(run_root(), name):
            here.add(info.machine)
            if info.machine not in connections:
                ways[info.machine] = UnixDoor(info.control)
        for machine, door in (ways | dict(doors or {})).items():
            ways[machine] = door
            if machine not in connections:
                try:
                    connections[machine] = door.open(timeout_s=answer_within_s)
                except NoNode as exc:
                    missing[machine] = str(exc)
        if not connections:
            raise NoNode(f"no node of cluster {name!r} answers here; `agentkit up` starts one")
        cluster = cls(name, {machine: ways[machine] for machine in connections}, connections, here)
        cluster.missing = missing
        return cluster

    def ask(self, operation: str, **arguments: Any) -> Any:
        """One node's answer: any of them knows the whole cluster. NodeLost, or TimeoutError, when none of them answers."""
        for machine in list(self.connections):
            try:
                return self.connections[machine].ask(operation, **arguments)
            except (NodeLost, TimeoutError) as exc:
                self._lose(machine, exc)
        raise NodeLost("no node answers any more")

    def ask_each(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Every node's answer, by machine. A node that goes away or does not answer is `missing` from then on; NodeLost, or
        TimeoutError, when none is left."""
        answers = {}
        for machine in list(self.connections):
            try:
                answers[machine] = self.connections[machine].ask(operation, **arguments)
            except (NodeLost, TimeoutError) as exc:
                self._lose(machine, exc)
        return answers

    def _lose(self, machine: str, exc: NodeLost | TimeoutError) -> None:
        """The machine's conversation is no use any more: an answer that comes late would be taken for another's."""
        if len(self.connections) == 1:
            raise exc
        self.connections.pop(machine).close()
        self.doors.pop(machine, None)
        self.missing[machine] = str(exc)

    def usage(self, *, memory: bool) -> dict[str, Any]:
        """What each machine's processes use (the `usage` operation), by machine; None: it does not answer. `memory`: measured, too."""
        found: dict[str, Any] = {}
        for machine in list(self.connections):
            # the first also asks for those that are not connected
            but = [*self.connections] if not found else [*self.connections, *found]
            try:
                told = self.connections[machine].ask("usage", memory=memory, but=but)["machines"]
            except (NodeLost, TimeoutError) as exc:
                self._lose(machine, exc)
                continue
            found |= {name: figures for name, figures in told.items() if figures is not None or name not in found}
        return found

    def status(self, *, memory: bool = False) -> tuple[list[dict[str, Any]], list[AgentRow]]:
        """What every node tells of itself, and every agent once: as its own node has it where that answers.

        `memory`: measured now; nodes that are not connected then tell of themselves through one that is. Rows of a machine
        that is unreachable say so; the times of a machine whose clock differs are those of this one's."""
        answers: dict[str, dict[str, Any]] = {}
        for machine in list(self.connections):
            others = {} if answers or not memory else {"others": True, "but": list(self.connections)}
            try:
                answers[machine] = self.connections[machine].ask("status", memory=memory, **others)
            except (NodeLost, TimeoutError) as exc:
                self._lose(machine, exc)
        clocks_s = {}
        rows: dict[AgentId, AgentRow] = {}
        silent_s: dict[str, float] = {}
        for answer in answers.values():
            silent_s |= {m: s for m, s in answer["silent_s"].items() if answer["peers"].get(m) == Phase.UNREACHABLE}
            for row in map(AgentRow.from_wire, answer["agents"]):
                if row.id.machine == answer["machine"] or (row.id.machine not in answers and _is_newer(row, rows)):
                    rows[row.id] = row
        told = list(answers.values())
        for answer in tuple(told):
            for machine, other in answer["others"].items():
                if other is not None and machine not in answers:
                    clocks_s[machine] = other["clock_s"]
                    told.append({**other, "peers": {}, "silent_s": {}, "revisions": {}, "others": {}, "agents": []})
        told.sort(key=lambda answer: str(answer["machine"]))
        return told, [self._as_seen_here(rows[id], answers, silent_s, clocks_s) for id in sorted(rows)]

    def _as_seen_here(
        self, row: AgentRow, asked: Collection[str], silent_s: Mapping[str, float], clocks_s: Mapping[str, float]
    ) -> AgentRow:
        """A row with the times of this machine's clock and addresses that mean something on it; it says when its own can't be reached."""
        machine = row.id.machine
        if machine not in self.here and len(row.endpoints) > 1:
            row = replace(row, endpoints={name: it for name, it in row.endpoints.items() if name != INBOX_LOCAL})
        if machine in silent_s and machine not in asked:
            was = "" if row.phase is Phase.UNREACHABLE else f"was {row.phase.value}; "
            reason = f"{was}nothing heard of {machine} for {duration(silent_s[machine])}"
            return replace(row, phase=Phase.UNREACHABLE, reason=reason, pid=None)
        ahead_s = clocks_s.get(machine, 0.0)
        return row if abs(ahead_s) < CLOCKS_AGREE_S else replace(row, stamps=row.stamps.shifted(-ahead_s))

    def revision(self) -> Revision | None:
        """The newest that any node has; None before the first `up`."""
        from startup.plan.revision import Revision

        found = [Revision.from_wire(data) for data in self.ask_each("revision").values() if data is not None]
        return max(found, key=lambda revision: revision.number, default=None)

    def propose(
        self, revision: Revision, bases: Mapping[str, int] | None = None, *, force_move: bool = False
    ) -> Revision:
        """Hand `revision` to every node in name order, numbered behind all that is there; what they took.

        `bases`: the number that each machine is expected to have (default: asked for now). Conflict when one has moved on:
        machines before it in name order have taken the revision, and the next command of either author heals that. A node
        that is lost meanwhile is `missing`; NodeLost, or TimeoutError, when it was the last one. `force_move`: agents that it
        moves away from machines that do not answer are started all the same."""
        if bases is None:
            bases = self.numbers()
        numbered = replace(revision, number=max(bases.values(), default=0) + 1, author=author(), time_s=time.time())
        wire = numbered.to_wire()
        taken: list[str] = []
        for machine in list(self.connections):
            try:
                asked = {"expected": bases.get(machine, 0), "revision": wire}
                self.connections[machine].ask("propose", **asked, **({"force_move": True} if force_move else {}))
            except Conflict as exc:
                done = f" ({', '.join(taken)} took it; run the command again)" if taken else ""
                raise Conflict(f"{machine}: {exc}{done}", exc.details) from exc
            except (NodeLost, TimeoutError) as exc:
                self._lose(machine, exc)
                continue
            taken.append(machine)
        return numbered

    def numbers(self) -> dict[str, int]:
        """Each machine's revision number; 0: none."""
        return {machine: number_of(hello) for machine, hello in self.ask_each("hello").items()}

    def unreached(self, machines: Collection[str]) -> dict[str, str]:
        """Those of `machines` whose nodes this command does not speak with, and why."""
        why = "its node was not found from here"
        return {it: self.missing.get(it, why) for it in sorted(machines) if it not in self.connections}

    def watch(self) -> Watch:
        """The rows from now on, over conversations of their own."""
        return Watch({machine: self.doors[machine] for machine in self.connections})

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def number_of(hello: Mapping[str, Any]) -> int:
    """The revision that a node has according to its `hello`; 0: none."""
    return int(hello["revision"]["number"]) if hello["revision"] else 0


def _is_newer(row: AgentRow, rows: Mapping[AgentId, AgentRow]) -> bool:
    return row.id not in rows or row.version > rows[row.id].version
