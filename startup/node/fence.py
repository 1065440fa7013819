"""Compares this node's revision with what its peers have, and keeps from running here what a newer one has taken away.

The rules are plan/fencing.py's. What was learnt is on disk before it is acted upon: a node that starts again while its peers are out of
reach still knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgpack

from agentkit.names import AgentId
from agentkit.observe.log import get_logger
from startup.node.mesh.mesh import Mesh
from startup.node.paths import Places, write_atomically
from startup.node.store import Revisions
from startup.node.turns import Turns
from startup.plan.desired import Desired
from startup.plan.fencing import Fencing, Rank, claims, limit_from_wire, moves_between
from startup.plan.revision import Revision

log = get_logger("node.fence")

#: How long a peer may take to say what its revision leaves to us, in seconds; then it is asked again...
ANSWERS_WITHIN_S: Final = 5.0
#: ...so many seconds later: as often as a lost machine is dialled anyway.
ASK_AGAIN_S: Final = 1.0
#: What starts wait for while peers are asked.
_PEERS: Final = "the other machines' revisions"


class Fence:
    """One for a node. `close` ends it."""

    def __init__(self, places: Places, turns: Turns, revisions: Revisions, mesh: Mesh) -> None:
        self._file = places.state / "fence.msgpack"
        self._machine = places.machine
        self._turns = turns
        self._core = turns.core
        self._revisions = revisions
        self._mesh = mesh
        self._saved = Fencing().to_wire()
        self._missing: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()  #: of those that are being asked

    # -- this node's own life

    def begin(self, revision: Revision) -> None:
        """This node starts with a stored revision: nothing is started before the others were heard, or did not speak in time."""
        self._core.fencing = self._load()
        self._core.fencing.revised(self._own())
        self._missing = {str(machine.name) for machine in revision.fleet.machines} - {self._machine}
        if self._missing:
            self._core.fencing.held = _PEERS
            self._timer = asyncio.get_running_loop().call_later(revision.fleet.mesh.suspect_s, self._release)

    def revised(self, before: Revision | None, revision: Revision, *, force_move: bool) -> None:
        """An operator's command: the last word for now. `force_move`: what was elsewhere is not waited for."""
        fencing = self._core.fencing
        fencing.revised(self._own())
        if force_move or before is None:
            fencing.moves = {}
        elif before.fleet.machines != revision.fleet.machines or len(before.fleet.machines) > 1:
            after = Desired(revision)
            moves = {id: old for id, old in fencing.moves.items() if id in after.specs and old not in after.specs}
            fencing.moves = moves | moves_between(Desired(before), after, self._machine)
        self._save()
        self._release()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in tuple(self._asked.values()):
            task.cancel()

    # -- what peers have

    def heard(self, machine: str, rank: Rank) -> None:
        """A peer has this revision; heard with each change, and with each new connection."""
        limit = self._core.fencing.limit
        known = max(self._own(), limit.rank) if limit is not None else self._own()
        if rank <= known:
            self._compared(machine)
        elif machine in self._asked:
            self._again.add(machine)  # there may be another connection than the one that it was asked over
        else:
            self._begin_asking(machine)

    def _begin_asking(self, machine: str) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(machine), name=f"fence:{machine}")
        self._asked[machine] = task
        task.add_done_callback(lambda done: self._has_asked(machine, was_cancelled=done.cancelled()))

    def _has_asked(self, machine: str, *, was_cancelled: bool) -> None:
        del self._asked[machine]
        if machine in self._again and not was_cancelled:
            self._again.discard(machine)
            self._begin_asking(machine)

    async def answer(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """`mesh.claims`: what our revision leaves to whoever asks."""
        current = self._revisions.current
        ids = claims(Desired(current), str(said["machine"]))
        return {"rank": self._own(), "machine": self._machine, "given": ids}

    def rows_told(self, phases: Collection[tuple[AgentId, Any]]) -> None:
        """Other machines' agents are in these phases now."""
        freed = [id for old, phase in phases for id in self._core.fencing.told(old, phase)]
        if freed:
            log.info("fence.moved", agents=[str(id) for id in freed])
            self._save()
            self._look_again()

    async def _ask(self, machine: str) -> None:
        # The first word of a machine that comes back may arrive before it counts as alive, over a connection that lived through the cut:
        # then it says which revision it has once, and nothing tells us again
        while (answer := await self._mesh.ask(machine, "mesh.claims", {}, ANSWERS_WITHIN_S)) is None:
            await asyncio.sleep(ASK_AGAIN_S)
            if machine not in self._mesh.others():
                return
        try:
            limit = limit_from_wire(answer)
        except (KeyError, TypeError, ValueError) as exc:
            log.warning("fence.bad_claims", machine=machine, error=str(exc))
            return
        if self._core.fencing.takes(limit, self._own()):
            log.warning(
                "fence.older_revision", own=self._own()[0], machine=machine, its=limit.rank[0], left=len(limit.given)
            )
            self._save()
            self._look_again()
        self._compared(machine)

    def _compared(self, machine: str) -> None:
        self._missing.discard(machine)
        if not self._missing:
            self._release()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._core.fencing.held:
            log.info("fence.released", silent=sorted(self._missing))
            self._core.fencing.held = ""
            self._look_again()

    def _look_again(self) -> None:
        self._core.look_again(self._turns.now_s())
        self._turns.soon()

    def _own(self) -> Rank:
        summary = self._revisions.summary()
        return (summary["number"], summary["digest"]) if summary else (0, "")

    def _load(self) -> Fencing:
        try:
            found = Fencing.from_wire(msgpack.unpackb(self._file.read_bytes()))
            self._saved = found.to_wire()
            return found
        except FileNotFoundError:
            return Fencing()
        except (OSError, ValueError, KeyError, TypeError) as exc:
            log.error("fence.unreadable", path=str(self._file), error=str(exc))
            return Fencing()

    def _save(self) -> None:
        facts = self._core.fencing.to_wire()
        if facts != self._saved:
            write_atomically(self._file, msgpack.packb(facts))
            self._saved = facts
