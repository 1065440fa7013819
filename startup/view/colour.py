"""The few colours of plain tables: escapes by hand, because rich costs 75 ms that `status` does not have."""

from __future__ import annotations

from typing import Final

from startup.plan.phase import Health, Phase
from startup.plan.row import AgentRow

RED: Final = "31"
GREEN: Final = "32"
YELLOW: Final = "33"
CYAN: Final = "36"
BOLD: Final = "1"
DIM: Final = "2"

_OF_PHASE: Final = {
    Phase.READY: GREEN,
    Phase.COMPLETED: GREEN,
    Phase.HIBERNATED: CYAN,
    Phase.FAILED: RED,
    Phase.UNREACHABLE: RED,
    Phase.SKIPPED: YELLOW,
    Phase.BACKOFF: YELLOW,
    Phase.STOPPED: DIM,
}


def paint(text: str, colour: str, *, on: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if on and text.strip() else text


def of_row(row: AgentRow) -> str:
    """The colour of its state; health speaks before the phase."""
    if row.phase is Phase.READY and row.health is not Health.OK:
        return RED if row.health is Health.FAILING else YELLOW
    return _OF_PHASE.get(row.phase, CYAN)


def state_of(row: AgentRow) -> str:
    """One word for phase and health: `ready` unless it is not well."""
    return row.health.value if row.phase is Phase.READY and row.health is not Health.OK else row.phase.value
