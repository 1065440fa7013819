"""How far a fleet's phases are: one line for each when it is confirmed, or for what keeps it from being. Rows in, lines out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentkit.names import AgentId
from startup.plan.phase import UP
from startup.plan.row import AgentRow
from startup.spec.fleet import Fleet
from startup.view.document import why
from startup.view.verdict import HOPELESS
from startup.view.words import count, duration, listing


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseAim:
    """One of a fleet's phases, as far as a command waits for it."""

    number: int  #: from 1
    of: int
    groups: tuple[str, ...]
    agents: tuple[AgentId, ...]
    required: frozenset[AgentId]

    @property
    def title(self) -> str:
        return f"phase {self.number}/{self.of} {'+'.join(self.groups)}"


def aims(fleet: Fleet, wanted: Collection[AgentId]) -> tuple[PhaseAim, ...]:
    """The phases that any of `wanted` is in."""
    chosen = frozenset(wanted)
    found = []
    for number, groups in enumerate(fleet.phases, 1):
        specs = [spec for spec in fleet.agents if spec.group in groups and spec.id in chosen]
        if specs:
            found.append(
                PhaseAim(
                    number=number,
                    of=len(fleet.phases),
                    groups=tuple(groups),
                    agents=tuple(spec.id for spec in specs),
                    required=frozenset(spec.id for spec in specs if spec.required),
                )
            )
    return tuple(found)


State = Literal["confirmed", "failed", "waiting"]


def state_of(aim: PhaseAim, rows: Mapping[AgentId, AgentRow]) -> State:
    """confirmed: everything required is ready. failed: something required will not be without help."""
    known = [rows.get(id) for id in aim.required]
    if any(row is not None and row.phase in HOPELESS for row in known):
        return "failed"
    return "confirmed" if all(row is not None and row.phase in UP for row in known) else "waiting"


def took_s(aim: PhaseAim, rows: Mapping[AgentId, AgentRow], began_s: float) -> float | None:
    """From when the first of its agents could start until the last was ready; None when the command started none of it. Seconds;
    `began_s` since the epoch."""
    # a second of tolerance: stamps may be another machine's
    stamps = [rows[id].stamps for id in aim.agents if id in rows and rows[id].phase in UP]
    fresh = [
        (at.unblocked_s, at.ready_s)
        for at in stamps
        if at.unblocked_s is not None and at.ready_s is not None and at.unblocked_s >= began_s - 1.0
    ]
    return max(0.0, max(end for _, end in fresh) - min(begin for begin, _ in fresh)) if fresh else None


class PhaseLines:
    """What there is to say of phases while a command waits; each is said once."""

    def __init__(self, phases: Sequence[PhaseAim], began_s: float) -> None:
        self._phases = phases
        self._began_s = began_s
        self._unsaid = list(phases)

    def new(self, rows: Mapping[AgentId, AgentRow]) -> list[str]:
        """The phases that are confirmed now, in their order: none before the one before it."""
        lines = []
        while self._unsaid and state_of(self._unsaid[0], rows) == "confirmed":
            lines.append(self._confirmed(self._unsaid.pop(0), rows))
        return lines

    def last(self, rows: Mapping[AgentId, AgentRow]) -> list[str]:
        """At the end: what is confirmed, and what has become of the first phase that is not."""
        lines = self.new(rows)
        if self._unsaid:
            aim = self._unsaid[0]
            lines.append(f"{aim.title}: {self._unconfirmed(aim, rows)}{self._behind(aim)}")
        return lines

    def to_wire(self, rows: Mapping[AgentId, AgentRow]) -> list[dict[str, Any]]:
        """For `up --json`."""
        return [
            {
                "number": aim.number,
                "groups": list(aim.groups),
                "state": state_of(aim, rows),
                "agents": len(aim.agents),
                "ready": sum(id in rows and rows[id].phase in UP for id in aim.agents),
                "took_s": None if (took := took_s(aim, rows, self._began_s)) is None else round(took, 4),
                "missing": [str(row.id) for row in _missing(aim, rows)],
            }
            for aim in self._phases
        ]

    def _confirmed(self, aim: PhaseAim, rows: Mapping[AgentId, AgentRow]) -> str:
        up = sum(id in rows and rows[id].phase in UP for id in aim.agents)
        of = "" if up == len(aim.agents) else f" of {len(aim.agents)}"
        took = took_s(aim, rows, self._began_s)
        time = " already" if took is None else f" in {duration(took)}"
        return f"{aim.title}: {up}{of} {'agent' if len(aim.agents) == 1 else 'agents'} ready{time}"

    def _unconfirmed(self, aim: PhaseAim, rows: Mapping[AgentId, AgentRow]) -> str:
        lost = [f"{row.id.instance} {row.phase}: {why(row)}" for row in _missing(aim, rows) if row.phase in HOPELESS]
        if lost:
            return "not confirmed, " + listing(lost, 3)
        return f"not confirmed yet, {count(sum(1 for id in aim.required if not _is_up(rows.get(id))), 'agent')} missing"

    def _behind(self, aim: PhaseAim) -> str:
        later = [other for other in self._phases if other.number > aim.number]
        if not later:
            return ""
        which = f"phase {later[0].number}" if len(later) == 1 else f"phases {later[0].number}-{later[-1].number}"
        return f"; {which} {'does' if len(later) == 1 else 'do'} not start before it"


def _is_up(row: AgentRow | None) -> bool:
    return row is not None and row.phase in UP


def _missing(aim: PhaseAim, rows: Mapping[AgentId, AgentRow]) -> list[AgentRow]:
    return [rows[id] for id in aim.agents if id in aim.required and id in rows and rows[id].phase not in UP]
