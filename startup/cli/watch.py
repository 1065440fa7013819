"""The rows of a whole cluster as they change, over conversations of their own."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from agentkit.errors import NoNode
from agentkit.names import AgentId
from startup.control import Door, Talk
from startup.errors import NodeLost
from startup.plan.row import AgentRow

#: How long `next` waits for more of what poll has announced: nothing, but 0 would not even look.
_AT_ONCE_S: Final = 1e-4

#: Seconds between two looks at whether a machine that would be cut off without a word is still there.
LOOK_EVERY_S: Final = 1.0


class Watch:
    """The rows of a whole cluster, kept current. Each machine's are taken from its own node where that is watched: what other
    nodes say of them is older by a message."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        """`doors`: by machine. NoNode when one does not answer."""
        self.rows: dict[AgentId, AgentRow] = {}
        self.lost: dict[str, float] = {}  #: machines whose node has gone away, since when
        self.changed_s = time.monotonic()  #: when a row last changed
        self.doors = dict(doors)
        self._connections: dict[str, Talk] = {}
        self._events: dict[str, Iterator[Any]] = {}
        try:
            for machine in doors:
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
        connection = self.doors[machine].open()
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
            changed = [self._take(machine) for machine in self._ready(left_s)]
            if True in changed or self._lose_silent():
                return True
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return False

    def _ready(self, left_s: float | None) -> set[str]:
        """The machines from which something has come, or comes within `left_s` or a look's time."""
        watched = {machine: self._connections[machine] for machine in self._events if machine not in self.lost}
        if arrived := {machine for machine, connection in watched.items() if connection.has_arrived()}:
            return arrived
        sources = {fd: machine for machine, connection in watched.items() for fd in connection.descriptors()}
        poll = select.poll()
        for source in sources:
            poll.register(source, select.POLLIN)
        if any(connection.is_silent() is not None for connection in watched.values()):
            left_s = LOOK_EVERY_S if left_s is None else min(left_s, LOOK_EVERY_S)
        return {sources[source] for source, _ in poll.poll(None if left_s is None else left_s * 1000)}

    def _lose_silent(self) -> bool:
        silent = [it for it in self._events if it not in self.lost and self._connections[it].is_silent()]
        self.lost |= dict.fromkeys(silent, time.monotonic())
        return bool(silent)

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
            if owner == machine or owner not in self.doors:
                yield AgentRow.from_wire(wire)
