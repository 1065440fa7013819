"""Watches a fleet until what was asked for is decided, and shows how far it is: shared by up, start, restart and stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Final, Literal

from agentkit.errors import NoNode
from agentkit.names import AgentId
from startup.cli import exits
from startup.cli.cluster import Cluster, number_of
from startup.cli.common import has_colour, is_terminal, note
from startup.cli.logfeed import tails
from startup.cli.watch import Watch
from startup.errors import NodeLost
from startup.plan.phase import UP, Phase
from startup.plan.row import AgentRow
from startup.view.logs import plain
from startup.view.progress import LiveBoard, SparseLines, board
from startup.view.verdict import LOST_AFTER_S, Verdict, failed_rows, judge

#: A node that went away is started again by its zygote within 5 s; after this long it is given up.
GIVEN_UP_AFTER_S: Final = 12.0
#: How often to look for a node that went away, and whether somebody else's command came after ours.
LOOK_AGAIN_S: Final = 0.2
#: How often the verdict is looked at though nothing came: grace and silence are measured in seconds.
_TICK_S: Final = 0.25
#: While more agents than this are coming, looks are so far apart, in seconds: each takes time for every agent of the fleet, on cores that
#: start them. 500 agents: 0.13 s of 0.85 s CPU less. The last few are looked at as they come.
_MANY: Final = 32
_APART_S: Final = 0.05
#: Lines of a failed agent's log that are shown.
TAIL_LINES: Final = 12

#: Rows in, lines that are worth keeping out.
News = Callable[[Mapping[AgentId, AgentRow]], list[str]]

End = Literal["decided", "timed-out", "overtaken", "lost", "halted", "undone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What is waited for."""

    cluster: str
    wanted: Sequence[AgentId]
    optional: frozenset[AgentId] = frozenset()
    unwanted: frozenset[AgentId] = frozenset()
    number: int  #: of our revision: another one means that somebody's command came after ours
    renewed: Mapping[AgentId, int] | None = None  #: incarnations that do not count any more (restart)
    rolls: bool = False  #: an agent counts when it has come through the rollout of our revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    end: End
    verdict: Verdict
    rows: Mapping[AgentId, AgentRow]
    message: str = ""  #: why it is not `decided`

    @property
    def exit_code(self) -> int:
        if self.end == "timed-out":
            return exits.TIMED_OUT
        return exits.DONE if self.end == "decided" and self.verdict.state == "ready" else exits.FAILED


def _no_news(_: Mapping[AgentId, AgentRow]) -> list[str]:
    return []


def follow(watch: Watch, aim: Aim, *, began_s: float, timeout_s: float | None, news: News = _no_news) -> Outcome:
    """Until it is decided. `began_s`: monotonic, when the command began; `timeout_s` counts from there. `news`: lines to leave behind,
    asked whenever rows have come."""
    required_up_since_s: float | None = None
    looked_s = time.monotonic()
    with ExitStack() as stack:
        show = _shower(stack, aim, began_s, news)
        while True:
            now_s = time.monotonic()
            rows = _counted(watch.rows, aim)
            found = watch.rows if aim.rolls else rows  # who waits for its turn serves
            verdict = judge(
                rows,
                aim.wanted,
                optional=aim.optional,
                unwanted=aim.unwanted,
                quiet_s=now_s - watch.changed_s,
                required_up_s=0.0 if required_up_since_s is None else now_s - required_up_since_s,
            )
            if _required_up(verdict, aim):
                required_up_since_s = required_up_since_s or now_s
            else:
                required_up_since_s = None
            suspicious = bool(watch.lost) or any(rows[id].phase in _TAKEN_AWAY for id in aim.wanted if id in rows)
            failed = [row for row in rows.values() if row.rolled < 0 or row.rolled > aim.number] if aim.rolls else []
            suspicious = suspicious or bool(failed)
            if failed and not verdict.leaving and now_s - watch.changed_s > LOST_AFTER_S and _is_halted(failed, aim):
                return Outcome(end="halted", verdict=verdict, rows=found, message=_why_halted(failed))
            if suspicious and (
                verdict.state == "stuck"
                or any(row.rolled > aim.number for row in failed)
                or now_s - looked_s >= LOOK_AGAIN_S
            ):
                looked_s = now_s
                if end := _taken_from_us(watch, aim):
                    return Outcome(end=end[0], verdict=verdict, rows=found, message=end[1])
                watch.revive()
            if verdict.state != "going" and not watch.lost:
                return Outcome(end="decided", verdict=verdict, rows=found)
            left_s = None if timeout_s is None else began_s + timeout_s - now_s
            if left_s is not None and left_s <= 0:
                return Outcome(
                    end="timed-out", verdict=verdict, rows=found, message=f"not decided within {timeout_s:g} s"
                )
            wait_s = show(rows, now_s)
            wait_s = min(wait_s, LOOK_AGAIN_S if suspicious else _TICK_S, *([] if left_s is None else [left_s]))
            if watch.wait(wait_s) and len(verdict.coming) > _MANY:
                time.sleep(_APART_S)
                watch.wait(0)


#: What somebody else's command does to an agent that we want.
_TAKEN_AWAY: Final = frozenset({Phase.STOPPING, Phase.STOPPED})


def _required_up(verdict: Verdict, aim: Aim) -> bool:
    return not verdict.leaving and all(
        id in aim.optional for group in (verdict.coming, verdict.hopeless) for id in group
    )


def _counted(rows: Mapping[AgentId, AgentRow], aim: Aim) -> Mapping[AgentId, AgentRow]:
    """Without the rows of processes that are to be replaced: those agents count as not told of yet."""
    if aim.rolls:
        return {id: _in_rollout(row, aim.number) for id, row in rows.items()}
    if not aim.renewed:
        return rows
    return {
        id: row
        for id, row in rows.items()
        if aim.renewed.get(id) != row.incarnation or row.phase is Phase.FAILED or row.roll_error
    }


def _in_rollout(row: AgentRow, number: int) -> AgentRow:
    """One that serves and has not come through yet waits for its turn, or is being replaced."""
    if row.phase not in UP or row.roll_error or abs(row.rolled) == number:
        return row
    if row.roll:
        return replace(row, is_replaced=True)
    return replace(row, phase=Phase.WAITING, reason="its turn", waiting_for=())


def _is_halted(failed: Sequence[AgentRow], aim: Aim) -> bool:
    """Whether the nodes leave it at that."""
    return any(row.rolled == -aim.number for row in failed)


def _why_halted(failed: Sequence[AgentRow]) -> str:
    first = min((row for row in failed if row.rolled < 0), key=lambda row: row.id)
    return f"halted: {first.id} did not become ready: {first.roll_error or first.reason or first.last_error}"


def _taken_from_us(watch: Watch, aim: Aim) -> tuple[End, str] | None:
    """Whether another command came after ours, or a node does not come back."""
    undone: list[str] = []
    for machine, door in watch.doors.items():
        try:
            with closing(door.open(timeout_s=2.0)) as connection:
                hello = connection.ask("hello")
        except (NoNode, NodeLost, TimeoutError):
            if machine in watch.lost and door.is_gone():
                return "overtaken", f"overtaken: the node of {machine} was told to stop"
            continue
        revision = hello["revision"]
        if revision and number_of(hello) > aim.number and aim.rolls and revision["note"]:
            undone.append(revision["note"])
        elif revision and number_of(hello) > aim.number:
            what = "`agentkit down`" if revision["down"] else f"revision {revision['number']}"
            return "overtaken", f"overtaken by {what} of {revision['author']}"
    if undone:
        return "undone", max(undone, key=len)  # the machine where it failed says why
    gone = [machine for machine, since_s in watch.lost.items() if time.monotonic() - since_s > GIVEN_UP_AFTER_S]
    if gone:
        return (
            "lost",
            f"the node of {', '.join(gone)} went away and does not come back; see its node.log in the state directory",
        )
    return None


def _shower(
    stack: ExitStack, aim: Aim, began_s: float, news: News
) -> Callable[[Mapping[AgentId, AgentRow], float], float]:
    """A function that shows rows and returns how long that may stay as it is, in seconds."""
    if not is_terminal(sys.stderr):
        sparse = SparseLines()

        def lines(rows: Mapping[AgentId, AgentRow], now_s: float) -> float:
            new = news(rows) + sparse.lines(rows, aim.wanted, elapsed_s=now_s - began_s)
            if new:
                note(new)
            return _TICK_S

        return lines
    live = stack.enter_context(LiveBoard(sys.stderr))
    colour = has_colour(sys.stderr)

    def paint(rows: Mapping[AgentId, AgentRow], now_s: float) -> float:
        if new := news(rows):
            live.clear()
            note(new)
        wait_s = live.wait_s(now_s)
        if wait_s > 0:
            return wait_s
        width, height = live.size()
        elapsed_s, wall_s = now_s - began_s, time.time()
        shown = board(
            aim.cluster, rows, aim.wanted, elapsed_s=elapsed_s, now_s=wall_s, width=width, height=height, colour=colour
        )
        live.paint(shown, now_s)
        return _TICK_S

    return paint


def log_tails(
    cluster: Cluster, rows: Mapping[AgentId, AgentRow], wanted: Collection[AgentId]
) -> dict[AgentId, list[str]]:
    """The ends of the logs of those that failed, readable."""
    failed = [row for row in failed_rows(rows, wanted) if (row.phase is Phase.FAILED or row.roll_error) and row.log]
    return {id: plain(lines)[-TAIL_LINES:] for id, lines in tails(cluster, failed, TAIL_LINES).items()}
