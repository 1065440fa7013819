"""What this node's processes do, kept for the node after it: a snapshot in the state directory and the changes since (store.py)."""

from __future__ import annotations

from agentkit.observe.log import get_logger
from startup.node import procinfo
from startup.node.memory import Remembering
from startup.node.paths import Places
from startup.node.store import Facts, Remembered
from startup.plan.process import Process
from startup.plan.reconcile import Reconciler

log = get_logger("node")


class Journal:
    """One for a node. Nothing here raises: a node whose disk is full goes on, and says so."""

    def __init__(self, places: Places, core: Reconciler) -> None:
        self._core = core
        self._remembering = Remembering(procinfo.start_ticks)
        self._remembered = Remembered(places)

    @property
    def trouble(self) -> str:
        """Why the state directory can't be written; "": it can."""
        return self._remembered.trouble

    def load(self) -> dict[str, Facts]:
        """What the node before this one knew, by agent id (as text)."""
        return self._remembered.load()

    def note(self, changed: tuple[Process, ...], removed: tuple[Process, ...]) -> None:
        """These are not what they were; those are gone from the fleet."""
        left = {str(p.id): None for p in removed}
        if self._remembered.change({**self._remembering.of(changed), **left}):
            self.renew()

    def renew(self) -> None:
        """A new snapshot of everything."""
        before = self.trouble
        try:
            self._remembered.begin(self._remembering.of(self._core.processes.values()))
        except OSError as exc:
            log.error("node.forgetful", error=str(exc))
        if self.trouble != before:
            log.warning("node.state", trouble=self.trouble or "it can be written again")

    def retry(self) -> None:
        """Now and then: what the state directory did not take."""
        if self.trouble:
            self.renew()

    def close(self) -> None:
        """Nothing is noted any more."""
        self._remembered.close()
