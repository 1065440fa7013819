"""Reporter: asks the other agents how things are and makes one report of it, as data and as Markdown.

A model of an agent that lives on others: it asks them all at once, each with its own time limit, and a report about
what could be learnt is better than none. Who is away stands in the report, with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from agentkit import AgentConfig, AgentState, BaseAgent, CallError, rpc

T = TypeVar("T")


class TaskFigures(BaseModel):
    """What we want of `TaskManager.stats`; fields that it adds are left aside."""

    total: int
    by_status: dict[str, int]
    overdue: int


class UsageFigures(BaseModel):
    """What we want of `Analytics.usage`."""

    start: datetime
    name: str
    events: int
    errors: int


class Load(BaseModel):
    mean: float
    high: float


class MachineFigures(BaseModel):
    """What we want of `SystemMonitor.summary`."""

    machine: str
    cpu_percent: Load
    memory_percent: Load
    warnings: list[str]


class Away(BaseModel):
    """An agent that did not answer, and why."""

    agent: str
    reason: str


class Report(BaseModel):
    number: int = Field(default=0, description="how many were made, this one included")
    made: datetime
    since: datetime | None = Field(default=None, description="when the one before was made")
    new_tasks: int | None = Field(default=None, description="how many more than then; None: not known")
    tasks: TaskFigures | None = Field(description="None: its agent is away")
    usage: list[UsageFigures] | None
    machines: list[MachineFigures]
    away: list[Away]
    markdown: str = Field(default="", description="all of the above, to be read")


def to_markdown(report: Report) -> str:
    return "\n".join([f"# Report of {report.made:%Y-%m-%d %H:%M} UTC", *_lines(report)]) + "\n"


def _lines(report: Report) -> Iterator[str]:
    if report.away:
        yield from ("", "**Incomplete:** " + "; ".join(f"{away.agent} is away ({away.reason})" for away in report.away))
    if report.tasks:
        grown = f", {report.new_tasks:+d} since {report.since:%Y-%m-%d %H:%M}" if report.new_tasks is not None else ""
        yield from ("", "## Tasks", "", f"{report.tasks.total} tasks, {report.tasks.overdue} overdue{grown}.", "")
        yield from _table(("status", "tasks"), report.tasks.by_status.items())
    if report.usage is not None:
        yield from ("", "## Usage", "")
        usage = [(f"{u.start:%Y-%m-%d %H:%M}", u.name, u.events, u.errors) for u in report.usage]
        yield from _table(("from", "event", "events", "errors"), usage) if usage else ("No events.",)
    if report.machines:
        yield from ("", "## Machines", "")
        machines = [
            (m.machine, m.cpu_percent.mean, m.cpu_percent.high, m.memory_percent.mean, "; ".join(m.warnings) or "none")
            for m in report.machines
        ]
        yield from _table(("machine", "CPU mean %", "CPU high %", "memory mean %", "warnings"), machines)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        # a bar inside a cell would begin another cell
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


class Reporter(BaseAgent):
    """One report about tasks, usage and machines."""

    class Config(AgentConfig):
        tasks: str = "TaskManager"
        analytics: str = "Analytics"
        monitors: tuple[str, ...] = ("SystemMonitor",)  #: `machine/name` where several machines have one
        patience_s: float = 2.0  #: for each agent asked

    class State(AgentState):
        reports: int = 0
        made: datetime | None = None  #: when the last one was
        tasks: int | None = None  #: how many there were then

    config: Config
    state: State

    @rpc(idempotent=True, timeout="30s")
    async def report(self, period: str = "day") -> Report:
        """Ask everybody now; usage per `period` (hour, day, week, month). Who does not answer is named in `away`."""
        tasks, usage, *machines = await asyncio.gather(
            self.ask(self.config.tasks, "stats", {}, TaskFigures),
            self.ask(self.config.analytics, "usage", {"period": period}, list[UsageFigures]),
            *(self.ask(monitor, "summary", {}, MachineFigures) for monitor in self.config.monitors),
        )
        away = [answer for answer in (tasks, usage, *machines) if isinstance(answer, Away)]
        if away:
            self.report_error("warning", "report is incomplete", away=[entry.agent for entry in away])
        before, figures = self.state, _present(tasks)
        report = Report(
            number=before.reports + 1,
            made=datetime.now(UTC),
            since=before.made,
            new_tasks=figures.total - before.tasks if figures and before.tasks is not None else None,
            tasks=figures,
            usage=_present(usage),
            machines=[machine for machine in machines if not isinstance(machine, Away)],
            away=away,
        )
        known = figures.total if figures else before.tasks
        self.state = self.State(reports=report.number, made=report.made, tasks=known)
        return report.model_copy(update={"markdown": to_markdown(report)})

    async def ask(self, agent: str, method: str, arguments: dict[str, Any], wanted: type[T]) -> T | Away:
        """The answer of `agent` as `wanted`, or why there is none."""
        try:
            answer = await self.call(agent, method, arguments, timeout=self.config.patience_s)
        except CallError as exc:
            return Away(agent=agent, reason=str(exc))
        return TypeAdapter(wanted).validate_python(answer)


def _present(answer: T | Away) -> T | None:
    return None if isinstance(answer, Away) else answer


if __name__ == "__main__":
    Reporter.main()
