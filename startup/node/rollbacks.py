"""Undoing a revision whose rollout failed: by the node where it did, and by every other that hears of it. No CLI has to be there.

Nobody sends a revision for this: each node has the one before in its own state directory, and what follows from the two is the same
everywhere (plan/rollback.py). A node that does not have it stays halted, and `status` shows that machines differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agentkit.clock import SYSTEM_CLOCK
from agentkit.errors import AgentkitError
from agentkit.observe.log import get_logger
from startup.node.keys import NodeKeys
from startup.node.store import Revisions, Unreadable
from startup.plan.revision import Revision
from startup.plan.rollback import because, rolled_back
from startup.plan.rollout import Failure

log = get_logger("node.rollbacks")


class _Accept(Protocol):
    def __call__(self, revision: Revision, before: Revision | None, *, force_move: bool) -> None: ...


class Rollbacks:
    """One for a node. `accept`: operations.Owner's; `is_ending`: nothing is begun any more."""

    def __init__(self, revisions: Revisions, keys: NodeKeys, accept: _Accept, is_ending: Callable[[], bool]) -> None:
        self._revisions = revisions
        self._keys = keys
        self._accept = accept
        self._is_ending = is_ending

    def failed(self, failure: Failure) -> None:
        """An agent of this machine did not come through the rollout of the current revision."""
        current = self._revisions.current
        assert current is not None
        log.error("rollout.failed", revision=current.number, agent=str(failure.id), reason=failure.reason)
        if (back := self._undoing(current)) is not None:
            self._take(because(back, failure), current)

    def heard(self, machine: str, number: int, digest: str) -> None:
        """Another machine has this revision: it may have undone the one that we have."""
        current = self._revisions.current
        if current is None or number != current.number + 1:
            return
        back = self._undoing(current)
        if back is not None and back.digest() == digest:
            log.info("rollout.undone_elsewhere", revision=current.number, machine=machine)
            self._take(back, current)

    def _undoing(self, current: Revision) -> Revision | None:
        """What follows when `current` is given up; None: it is not to be, or the one before it is not at hand."""
        rollout = current.rollout
        if rollout is None or rollout.on_failure != "roll back" or current.down or self._is_ending():
            return None
        try:
            base = self._revisions.earlier(rollout.base)
        except Unreadable as exc:
            log.error("rollout.no_base", revision=rollout.base, error=str(exc))
            return None
        if base is None or base.digest() != rollout.base_digest:
            log.error("rollout.no_base", revision=rollout.base, error="this machine did not have it")
            return None
        return rolled_back(current, base, SYSTEM_CLOCK.wall_s())

    def _take(self, revision: Revision, before: Revision) -> None:
        try:
            self._keys.use(revision.fleet)
            self._revisions.propose(before.number, revision)
        except (AgentkitError, OSError) as exc:
            log.error("rollout.not_undone", revision=before.number, error=str(exc))
            return
        self._accept(revision, before, force_move=False)
