"""A plan carried out: strikes at their times, each watched until all is well again, then a look at what is left."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agentkit.errors import AgentkitError, NoNode
from agentkit.names import AgentId
from startup.cli.common import note
from startup.cli.watch import Watch
from startup.control import Door
from startup.errors import NodeLost, Refused
from startup.plan.chaos import Strike
from startup.plan.phase import UP
from startup.plan.row import AgentRow

#: How often nodes are looked at while one of them is not what it was, in seconds.
LOOK_EVERY_S: Final = 0.05
#: A node that may just be starting again is told within this, in seconds.
TOLD_WITHIN_S: Final = 10.0
#: What is being ended, or was forked in this instant, is no orphan: the last look is repeated for so long.
AUDIT_WITHIN_S: Final = 15.0


@dataclass(slots=True)
class Struck:
    """One strike, and what came of it."""

    strike: Strike
    at_s: float  #: since the beginning
    before: Any = None  #: what must be another afterwards: an incarnation, a pid
    ready_s: float | None = None  #: until all was well again; None: not yet
    missed: str = ""  #: why nothing was done

    def to_wire(self) -> dict[str, Any]:
        ready_s = None if self.ready_s is None else round(self.ready_s, 3)
        return {"at_s": round(self.at_s, 3), "fault": str(self.strike), "ready_s": ready_s, "missed": self.missed}


class Run:
    """Over one fleet. `wanted`: the agents that were up at the beginning, and have to be at the end."""

    def __init__(self, doors: Mapping[str, Door], wanted: Sequence[AgentRow]) -> None:
        self.struck: list[Struck] = []
        self._doors = doors
        self._wanted = {row.id: row for row in wanted}
        self._began_s = time.monotonic()
        self._nodes: dict[str, tuple[int, int | None, Mapping[str, str]]] = {}  # pid, zygote's, peers: as last seen
        self._looked_s = 0.0

    # -- the whole of it

    def perform(self, strikes: Sequence[Strike], settle_s: float) -> None:
        """Returns when all is well again after the last one, or `settle_s` later."""
        self._look()
        with Watch(self._doors) as watch:
            # a strike at the first moment finds its agent
            watch.until(lambda rows: rows.keys() >= self._wanted.keys(), TOLD_WITHIN_S)
            self._began_s = time.monotonic()
            for strike in strikes:
                self._until(watch, self._began_s + strike.at_s)
                self._strike(strike, watch)
            last_s = max((it.at_s + it.strike.for_s for it in self.struck), default=0.0)
            self._until(watch, self._began_s + last_s + settle_s, well=True)

    def heal(self) -> None:
        """Whatever lasts ends now."""
        for machine in self._doors:
            try:
                self._tell(machine, {"verb": "heal"}, within_s=2.0)
            except AgentkitError as exc:
                note(f"agentkit: {machine} was not told to heal ({exc}); what was done there ends by itself")

    def audit(self) -> dict[str, Any]:
        """Orphans, ports and restarts, when things have calmed down."""
        ends_s = time.monotonic() + AUDIT_WITHIN_S
        while True:
            found = self._audit()
            if not (found["orphans"] or found["lost_ports"]) or time.monotonic() > ends_s:
                return found
            time.sleep(0.2)

    # -- strikes

    def _strike(self, strike: Strike, watch: Watch) -> None:
        struck = Struck(strike, time.monotonic() - self._began_s)
        self.struck.append(struck)
        try:
            struck.before = self._now(strike, watch)
            if strike.kind == "link":
                here, there = strike.machines
                lasting = {"verb": strike.verb, "for_s": strike.for_s, "by_s": strike.by_s}
                self._tell(here, {**lasting, "other": there})
                self._tell(there, {**lasting, "other": here})
            else:
                asked: dict[str, Any] = {
                    "verb": strike.verb,
                    "kind": strike.kind,
                    "id": strike.target,
                    "for_s": strike.for_s,
                }
                if strike.kind == "agent":
                    asked["incarnation"] = int(struck.before)
                self._tell(strike.machines[0], asked)
        except (AgentkitError, TimeoutError) as exc:
            struck.missed = str(exc)
            struck.ready_s = 0.0
        note(f"{struck.at_s:7.2f} s  {strike}" + (f": not done: {struck.missed}" if struck.missed else ""))

    def _now(self, strike: Strike, watch: Watch) -> Any:
        """What `strike` makes another, before it does."""
        machine = strike.machines[0]
        if strike.kind == "agent":
            row = watch.rows.get(AgentId.parse(strike.target))
            if row is None or row.phase not in UP:
                raise Refused("not_up", "it is not up just now")
            return row.incarnation
        if strike.verb == "kill":
            ends_s = time.monotonic() + TOLD_WITHIN_S
            while (found := self._ask_node(machine, TOLD_WITHIN_S))[1] is None:
                if time.monotonic() > ends_s:
                    raise Refused("gone", "there is no zygote just now")
                time.sleep(LOOK_EVERY_S)
            pid, zygote, _ = found
            return pid if strike.kind == "node" else zygote
        return None

    def _tell(self, machine: str, arguments: Mapping[str, Any], within_s: float = TOLD_WITHIN_S) -> Any:
        """A node that was just killed is there again soon."""
        ends_s = time.monotonic() + within_s
        while True:
            try:
                talk = self._doors[machine].open(timeout_s=within_s)
                try:
                    return talk.ask("chaos", **arguments)
                finally:
                    talk.close()
            except (NoNode, NodeLost):
                if time.monotonic() > ends_s:
                    raise
            except Refused as exc:
                # a node and its zygote that are killed at once stay away until the next `up`: neither is there to start the other
                if exc.code != "replacing" or time.monotonic() > ends_s:
                    raise
            time.sleep(LOOK_EVERY_S)

    # -- what comes of them

    def _until(self, watch: Watch, at_s: float, *, well: bool = False) -> None:
        """Watch until `at_s` (monotonic); with `well`: or until every strike is over."""
        while True:
            self._judge(watch)
            open_ = [it for it in self.struck if it.ready_s is None]
            left_s = at_s - time.monotonic()
            if left_s <= 0 or (well and not open_):
                return
            watch.wait(min(left_s, LOOK_EVERY_S) if open_ or watch.lost else left_s)
            watch.revive()

    def _judge(self, watch: Watch) -> None:
        now_s = time.monotonic() - self._began_s
        open_ = [it for it in self.struck if it.ready_s is None and now_s >= it.at_s + it.strike.for_s]
        if any(it.strike.kind != "agent" for it in open_):
            self._look()
        is_well = not watch.lost and all(
            (row := watch.rows.get(id)) is not None and row.phase in UP for id in self._wanted
        )
        for struck in open_:
            if self._is_over(struck, watch) and (struck.strike.kind == "agent" or is_well):
                struck.ready_s = now_s - struck.at_s - struck.strike.for_s

    def _is_over(self, struck: Struck, watch: Watch) -> bool:
        strike = struck.strike
        if strike.kind == "agent":
            row = watch.rows.get(AgentId.parse(strike.target))
            is_other = strike.verb != "kill" or (row is not None and row.incarnation != struck.before)
            return row is not None and row.phase in UP and is_other
        seen = [self._nodes.get(machine) for machine in strike.machines]
        if None in seen:
            return False
        if strike.kind == "link":
            return all(
                peers.get(other) == "alive"
                for node, other in zip(seen, reversed(strike.machines), strict=True)
                if node is not None
                for peers in (node[2],)
            )
        node = seen[0]
        assert node is not None
        pid, zygote, _ = node
        if strike.verb == "kill":
            return (pid if strike.kind == "node" else zygote) not in (None, struck.before)
        return True

    def _look(self) -> None:
        """How the nodes are."""
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        for machine in self._doors:
            try:
                self._nodes[machine] = self._ask_node(machine, 0.0)
            except (AgentkitError, TimeoutError):
                self._nodes.pop(machine, None)
        self._looked_s = time.monotonic()

    def _ask_node(self, machine: str, within_s: float) -> tuple[int, int | None, Mapping[str, str]]:
        ends_s = time.monotonic() + within_s
        while True:
            try:
                talk = self._doors[machine].open(timeout_s=max(1.0, within_s))
                try:
                    told = talk.ask("status", memory=False)
                finally:
                    talk.close()
                return int(told["node"]["pid"]), told["node"]["zygote_pid"], told["peers"]
            except (NoNode, NodeLost):
                if time.monotonic() > ends_s:
                    raise
            time.sleep(LOOK_EVERY_S)

    def _audit(self) -> dict[str, Any]:
        orphans: dict[str, list[int]] = {}
        lost: list[str] = []
        rows: dict[AgentId, AgentRow] = {}
        for machine, door in self._doors.items():
            told = self._tell(machine, {"verb": "audit"})
            if told["orphans"]:
                orphans[machine] = told["orphans"]
            lost += told["unheld"]
            talk = door.open()
            try:
                answer = talk.ask("status", memory=False)
            finally:
                talk.close()
            rows |= {row.id: row for row in map(AgentRow.from_wire, answer["agents"]) if row.id.machine == machine}
        restarts = 0
        not_up = []
        for id, before in self._wanted.items():
            row = rows.get(id)
            if row is None or row.phase not in UP:
                not_up.append(str(id))
                continue
            restarts += max(0, row.restarts - before.restarts)
            if row.endpoints != before.endpoints or not _answers(row):
                lost.append(str(id))
        return {"orphans": orphans, "lost_ports": sorted(set(lost)), "not_up": not_up, "restarts": restarts}


def _answers(row: AgentRow) -> bool:
    """Whether somebody listens at an address of it. An address of another host that can't be reached from here is not judged."""
    for endpoint in row.endpoints.values():
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
        except ConnectionRefusedError:
            return False
        except OSError:
            continue
    return True
