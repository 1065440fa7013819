"""The words for where a process is and how it fares. No imports: everything else speaks in these."""

from enum import StrEnum
from typing import Final


class Phase(StrEnum):
    """Where one agent slot is in its life. A StrEnum, so that it crosses the wire as its name."""

    PENDING = "pending"  #: wanted, not yet looked at
    WAITING = "waiting"  #: for dependencies, an external, or the phase before its own
    BACKOFF = "backoff"  #: failed, will be started again at a known time
    FORKED = "forked"  #: has a pid
    IMPORTING = "importing"  #: its module is being imported
    PARKED = "parked"  #: imported, and waits for its predecessor to go; successors only
    STARTING = "starting"  #: __init__, on_start, checks
    READY = "ready"
    DRAINING = "draining"  #: a successor takes over
    STOPPING = "stopping"  #: we asked it to go
    STOPPED = "stopped"  #: nothing of it is left, because somebody wanted that
    COMPLETED = "completed"  #: a task that exited with 0
    FAILED = "failed"  #: restart budget used up, or it can't be started; tried again slowly
    SKIPPED = "skipped"  #: derived: a required dependency failed, or its script can't be used
    HIBERNATED = "hibernated"  #: no process; its sockets are kept
    UNREACHABLE = "unreachable"  #: its machine does not answer


class Health(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"  #: works, with a reason; takes calls
    FAILING = "failing"  #: should get no calls


#: There is a process (or there may be one).
ALIVE: Final = frozenset(
    {Phase.FORKED, Phase.IMPORTING, Phase.PARKED, Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.STOPPING}
)
#: Told to go, or going by itself.
GOING: Final = frozenset({Phase.DRAINING, Phase.STOPPING})
#: On its way to ready: counted against the start timeout.
COMING_UP: Final = frozenset({Phase.FORKED, Phase.IMPORTING, Phase.STARTING})
#: Fulfils `condition: healthy`, `required` and phases.
UP: Final = frozenset({Phase.READY, Phase.HIBERNATED, Phase.COMPLETED})
#: Nothing more happens to it without an operator, or for minutes.
SETTLED: Final = UP | {Phase.STOPPED, Phase.FAILED, Phase.SKIPPED, Phase.UNREACHABLE}
