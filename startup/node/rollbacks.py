"""Undoing a revision whose rollout failed: by the node where it did, and by every other that hears of it. No CLI has to be there.

Each node has the revision before in its own state directory, and what follows from the two is the same everywhere (plan/rollback.py).
One that does not have it (it was away, or is new) asks the others:

    mesh.revision {number} -> {revision}: as I keep it; None: I do not

What comes counts only if it has the digest that the revision which an operator made names: another machine can't have us run anything.
Where nobody has it, the rollout stays halted, and `status` shows that machines differ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from agentkit.clock import SYSTEM_CLOCK
from agentkit.errors import AgentkitError
from agentkit.observe.log import get_logger
from startup.node.keys import NodeKeys
from startup.node.store import Revisions, Unreadable
from startup.plan.revision import Revision, Rollout
from startup.plan.rollback import because, is_base, rolled_back
from startup.plan.rollout import Failure

log = get_logger("node.rollbacks")

#: How long one machine may take to send a revision, in seconds.
ANSWERS_WITHIN_S: Final = 5.0


class _Accept(Protocol):
    def __call__(self, revision: Revision, before: Revision | None, *, force_move: bool) -> None: ...


class _Others(Protocol):
    """The other machines (mesh.Mesh)."""

    def others(self) -> list[str]: ...

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any: ...


class Rollbacks:
    """One for a node. `accept`: operations.Owner's; `is_ending`: nothing is begun any more. `close` ends it."""

    def __init__(
        self, revisions: Revisions, keys: NodeKeys, others: _Others, accept: _Accept, is_ending: Callable[[], bool]
    ) -> None:
        self._revisions = revisions
        self._others = others
        #: By the number of the revision that is to be given up: who asks for the one before, and what waits for it
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._waiting: dict[int, list[Callable[[Revision], None]]] = {}
        self._keys = keys
        self._accept = accept
        self._is_ending = is_ending

    def failed(self, failure: Failure) -> None:
        """An agent of this machine did not come through the rollout of the current revision."""
        current = self._revisions.current
        assert current is not None
        log.error("rollout.failed", revision=current.number, agent=str(failure.id), reason=failure.reason)
        self._undo(current, lambda back: self._take(because(back, failure), current))

    def heard(self, machine: str, number: int, digest: str) -> None:
        """Another machine has this revision: it may have undone the one that we have."""
        current = self._revisions.current
        if current is None or number != current.number + 1:
            return

        def follow(back: Revision) -> None:
            if back.digest() == digest:
                log.info("rollout.undone_elsewhere", revision=current.number, machine=machine)
                self._take(back, current)

        self._undo(current, follow)

    async def answer(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """`mesh.revision`."""
        try:
            return {"revision": self._revisions.stored(int(said["number"]))}
        except (Unreadable, KeyError, TypeError, ValueError) as exc:
            log.warning("rollout.not_told", error=str(exc))
            return {"revision": None}

    def close(self) -> None:
        for task in tuple(self._asking.values()):
            task.cancel()

    def _undo(self, current: Revision, take: Callable[[Revision], None]) -> None:
        """Give `take` what follows when `current` is given up, now or when another machine has sent the one before; never, if it is not
        to be given up."""
        rollout = current.rollout
        if rollout is None or rollout.on_failure != "roll back" or current.down or self._is_ending():
            return
        try:
            base = self._revisions.earlier(rollout.base)
        except Unreadable as exc:
            log.error("rollout.unreadable", revision=rollout.base, error=str(exc))
            base = None
        if base is not None and is_base(base, rollout):
            take(rolled_back(current, base, SYSTEM_CLOCK.wall_s()))
            return
        number = current.number
        self._waiting.setdefault(number, []).append(take)
        if number not in self._asking:
            asking = self._ask(current, rollout)
            self._asking[number] = asyncio.get_running_loop().create_task(asking, name=f"rollback:ask {number}")

    async def _ask(self, current: Revision, rollout: Rollout) -> None:
        try:
            base = await self._sent(rollout)
        finally:
            waiting = self._waiting.pop(current.number)
            del self._asking[current.number]
        if base is None:
            why = "neither this machine nor one that answers has it: `agentkit apply` or `agentkit rollback` brings machines together"
            log.error("rollout.no_base", revision=rollout.base, error=why)
            return
        for take in waiting:
            if self._revisions.current is current and not self._is_ending():
                take(rolled_back(current, base, SYSTEM_CLOCK.wall_s()))

    async def _sent(self, rollout: Rollout) -> Revision | None:
        for machine in self._others.others():
            said = await self._others.ask(machine, "mesh.revision", {"number": rollout.base}, ANSWERS_WITHIN_S)
            if (base := self._read(machine, said, rollout)) is not None:
                log.info("rollout.base_sent", revision=rollout.base, machine=machine)
                return base
        return None

    def _read(self, machine: str, said: Any, rollout: Rollout) -> Revision | None:
        if not isinstance(said, Mapping) or not said.get("revision"):
            return None
        try:
            base = Revision.from_wire(said["revision"])
        except (AgentkitError, KeyError, TypeError, ValueError) as exc:
            log.warning("rollout.bad_base", machine=machine, revision=rollout.base, error=str(exc)[:300])
            return None
        if not is_base(base, rollout):
            log.warning("rollout.other_base", machine=machine, revision=rollout.base)
            return None
        return base

    def _take(self, revision: Revision, before: Revision) -> None:
        try:
            self._keys.use(revision.fleet)
            self._revisions.propose(before.number, revision)
        except (AgentkitError, OSError) as exc:
            log.error("rollout.not_undone", revision=before.number, error=str(exc))
            return
        self._accept(revision, before, force_move=False)
