"""When is `up` decided, and how did it end? Rows in, a verdict out; no I/O, no clock of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

from agentkit.names import AgentId
from startup.plan.phase import ALIVE, UP, Health, Phase
from startup.plan.row import AgentRow

#: Only waiting agents are left and no row has changed for this long: nothing can progress by itself. Longer than a word
#: between two nodes takes, and than the probe of an external that is just coming up.
STALLED_AFTER_S: Final = 5.0
#: Nobody moves, somebody required is lost: that counts once it has been so for this long. Nodes hold rows back for up to 30 ms,
#: so an agent that is just being started again may still look stopped or failed.
LOST_AFTER_S: Final = 0.2
#: Everything required is ready: agents that only degrade the fleet and are on their way get this long to make the count.
OPTIONAL_GRACE_S: Final = 2.0

#: Will not become ready without an operator (or for minutes).
HOPELESS: Final = frozenset({Phase.FAILED, Phase.SKIPPED, Phase.STOPPED, Phase.UNREACHABLE})


class ExitCode(IntEnum):
    """Of every command (configuration.md, "Command line")."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    TIMED_OUT = 3
    NO_NODE = 4
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`going`: look again. `ready`: everything required is. `stuck`: nothing can progress without an operator."""

    state: Literal["going", "ready", "stuck"]
    up: tuple[AgentId, ...] = ()
    coming: tuple[AgentId, ...] = ()  #: neither up nor hopeless
    hopeless: tuple[AgentId, ...] = ()
    leaving: tuple[AgentId, ...] = ()  #: no longer wanted, still there

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.DONE if self.state == "ready" else ExitCode.FAILED


def judge(
    rows: Mapping[AgentId, AgentRow],
    wanted: Collection[AgentId],
    *,
    optional: Collection[AgentId] = (),
    unwanted: Collection[AgentId] = (),
    quiet_s: float = 0.0,
    required_up_s: float = 0.0,
) -> Verdict:
    """What `rows` say about the agents in `wanted`; `optional` ones among them do not decide; `unwanted` have to go.

    `quiet_s`: since a row last changed. `required_up_s`: since everything required has been up."""
    up, coming, hopeless, moving = [], [], [], False
    for id in wanted:
        row = rows.get(id)
        if row is not None and row.phase in UP and not row.is_replaced and not row.roll_error:
            up.append(id)
        elif row is not None and (row.phase in HOPELESS or row.roll_error):
            hopeless.append(id)
        else:
            coming.append(id)
            moving = moving or row is None or row.phase is not Phase.WAITING
    leaving = tuple(id for id in unwanted if id in rows and rows[id].phase in ALIVE)
    ready = not leaving and all(id in optional for group in (coming, hopeless) for id in group)
    if ready and (not coming or required_up_s >= OPTIONAL_GRACE_S):
        state: Literal["going", "ready", "stuck"] = "ready"
    elif ready or moving or leaving or quiet_s < (STALLED_AFTER_S if coming else LOST_AFTER_S):
        state = "going"
    else:
        state = "stuck"
    return Verdict(state=state, up=tuple(up), coming=tuple(coming), hopeless=tuple(hopeless), leaving=leaving)


def is_degraded(row: AgentRow) -> bool:
    """Up, but not well."""
    return row.phase in UP and row.health is not Health.OK


def failed_rows(rows: Mapping[AgentId, AgentRow], wanted: Collection[AgentId]) -> list[AgentRow]:
    """Those that did not come up by themselves: failed, unreachable, stopped by somebody, or still waiting at the end; and those that
    could not be replaced."""
    not_own_fault = UP | {Phase.SKIPPED}
    return [rows[id] for id in wanted if id in rows and (rows[id].phase not in not_own_fault or rows[id].roll_error)]


def skipped_rows(rows: Mapping[AgentId, AgentRow], wanted: Collection[AgentId]) -> list[AgentRow]:
    return [rows[id] for id in wanted if id in rows and rows[id].phase is Phase.SKIPPED]
