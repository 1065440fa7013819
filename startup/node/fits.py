"""What a node has to say to a fleet before it takes it: what its own machine can't do.

The same is checked where the file is, but a fleet may come from elsewhere."""

from __future__ import annotations

from startup.errors import Refused
from startup.plan.revision import Revision
from startup.spec.pools import Machine, misfits, overruns, this_machine


def check_fit(revision: Revision, machine: str, there: Machine | None = None) -> None:
    """Refused when the fleet's part of `machine` does not fit it, or its pools. What ends everything always does."""
    if revision.down:
        return
    fleet = revision.fleet
    found = [*overruns(fleet, machine), *misfits(fleet, machine, there or this_machine())]
    if found:
        raise Refused("does_not_fit", "\n".join(f"{machine}: {misfit}" for misfit in found))
