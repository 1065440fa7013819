"""`status` as text: one line per agent, machine by machine; or everything about one agent. Pure: rows and a time in, lines out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from startup.plan.phase import Phase
from startup.plan.row import CLOCKS_AGREE_S, AgentRow
from startup.view.colour import BOLD, DIM, of_row, paint, state_of
from startup.view.document import endpoint, uptime_s, why
from startup.view.sleep import asleep_for, in_words
from startup.view.vitals import budget
from startup.view.words import columns, count, cut, duration, fit, number

#: From this width on there is room for group, restarts, errors and endpoint.
WIDE: Final = 140


def status_lines(
    cluster: str,
    answers: Sequence[Mapping[str, Any]],
    rows: Iterable[AgentRow],
    *,
    now_s: float,
    width: int,
    colour: bool = False,
) -> list[str]:
    """The whole cluster. `answers`: of the `status` operation, one per node asked; `now_s`: seconds since the epoch."""
    ordered = sorted(rows, key=lambda row: (row.id.machine, row.group, row.id))
    table = [_HEADING_WIDE if width >= WIDE else _HEADING, *(_cells(row, now_s, wide=width >= WIDE) for row in ordered)]

    def painted(y: int, x: int, cell: str) -> str:
        if y == 0:
            return paint(cell, BOLD, on=colour)
        return paint(cell, of_row(ordered[y - 1]), on=colour) if x == 1 else cell

    heading, *lines = columns(table, right=_RIGHT_WIDE if width >= WIDE else _RIGHT, width=width, paint=painted)
    lines = [_unfold(line, cells[-1], width) for line, cells in zip(lines, table[1:], strict=True)]
    clusters = _cluster_lines(cluster, answers, ordered, now_s, width)
    head = [*clusters, *_disagreements(answers), *_troubles(answers), *_notes(answers, width)]
    result = [*head, "", heading]
    told = {answer["machine"]: answer for answer in answers}
    peers = {machine: state for answer in answers for machine, state in answer["peers"].items()}
    silent_s = {machine: age_s for answer in answers for machine, age_s in answer.get("silent_s", {}).items()}
    machines = sorted({*told, *peers, *(str(row.id.machine) for row in ordered)})
    for machine in machines:
        own = [line for row, line in zip(ordered, lines, strict=True) if row.id.machine == machine]
        line = _machine_line(machine, told.get(machine), peers.get(machine), silent_s.get(machine))
        result += [paint(fit(line, width), DIM, on=colour), *own]
    return result


def agent_lines(
    row: AgentRow, *, now_s: float, width: int, log_tail: Sequence[str] = (), colour: bool = False
) -> list[str]:
    """Everything about one agent: what it waits for, its last exits, last error, log tail."""
    up_s = uptime_s(row, now_s)
    stamps = row.stamps
    start_s = stamps.ready_s - stamps.wanted_s if stamps.ready_s and stamps.wanted_s else None
    facts = [
        ("state", paint(state_of(row), of_row(row), on=colour) + (f": {why(row)}" if why(row) else "")),
        ("says", row.status_text),
        ("waits for", ", ".join(row.waiting_for)),
        ("group", row.group + ("" if row.required else " (optional)")),
        ("process", f"pid {row.pid}" + (f", up {duration(up_s)}" if up_s is not None else "") if row.pid else "none"),
        ("memory", f"{row.memory_mb:.1f} MB" if row.memory_mb is not None else ""),
        ("endpoint", endpoint(row) or ""),
        ("health", row.health_url or ""),
        ("last start", f"ready {duration(start_s)} after it was asked for" if start_s is not None else ""),
        ("unblocked by", row.slowest_dependency),
        ("restarts", str(row.restarts) if row.restarts else ""),
        ("last exit", row.last_exit),
        ("last error", row.last_error),
        (
            "served",
            f"{count(row.requests, 'request')}, {count(row.errors, 'error')}" if row.requests or row.errors else "",
        ),
        ("remembers", _remembers(row.state, now_s)),
        ("sleep", in_words(row.sleep, now_s)),
        ("log", row.log),
    ]
    lines = [paint(str(row.id), BOLD, on=colour)]
    lines += [f"  {label:<13}{value}" for label, value in facts if value]
    if log_tail:
        lines += ["", *(f"  | {cut(line, width - 4)}" for line in log_tail)]
    return lines


def _remembers(state: Mapping[str, Any], now_s: float) -> str:
    """How the agent's state is kept, in one line."""
    if not state:
        return ""
    saved_s = state.get("saved_s")
    kept = (
        f"{state.get('bytes', 0) / 1024:.1f} KiB, saved {duration(max(0.0, now_s - saved_s))} ago"
        if saved_s
        else "nothing yet"
    )
    wrong = (
        f"{what}: {state[key]}" for key, what in (("trouble", "NOT SAVED"), ("fallback", "FELL BACK")) if key in state
    )
    return "; ".join((f"in {state.get('store')}: {kept}", *wrong))


_HEADING: Final = ("AGENT", "STATE", "PID", "UP", "MB", "CALLS", "NOTE")
_HEADING_WIDE: Final = ("AGENT", "STATE", "PID", "UP", "MB", "CALLS", "ERRORS", "RESTARTS", "GROUP", "ENDPOINT", "NOTE")
_RIGHT: Final = frozenset({2, 3, 4, 5})
_RIGHT_WIDE: Final = frozenset({2, 3, 4, 5, 6, 7})


def _cells(row: AgentRow, now_s: float, *, wide: bool) -> tuple[str, ...]:
    up_s = uptime_s(row, now_s)
    served = row.requests or row.errors
    note = why(row) or asleep_for(row.sleep, now_s) or row.status_text
    if row.restarts and not wide:
        note = f"{count(row.restarts, 'restart')}{'; ' + note if note else ''}"
    first = (
        fit(row.id.instance, 40 if wide else 26),
        state_of(row),
        str(row.pid) if row.pid else "-",
        duration(up_s) if up_s is not None else "-",
        f"{row.memory_mb:.1f}" if row.memory_mb is not None else "-",
        number(row.requests) if served else "-",
    )
    if not wide:
        return (*first, note)
    return (*first, number(row.errors) if served else "-", str(row.restarts), row.group, endpoint(row) or "-", note)


def _unfold(line: str, note: str, width: int) -> str:
    """A note that was cut stands below its line instead: why something failed has to be read without a wider terminal."""
    if not note or not line.endswith("…") or note.endswith("…"):
        return line
    kept = line[: line.rindex("  ")].rstrip()
    return f"{kept}\n    {fit(note, width - 4)}"


def _cluster_lines(
    cluster: str, answers: Sequence[Mapping[str, Any]], rows: Sequence[AgentRow], now_s: float, width: int
) -> list[str]:
    """One line, or two where one is too narrow."""
    newest = max(
        (answer["revision"] for answer in answers if answer["revision"]), key=lambda it: it["number"], default=None
    )
    states = Counter(state_of(row) for row in rows)
    summary = ", ".join(
        f"{states[state]} {state}" for state in sorted(states, key=lambda it: (it != Phase.READY, -states[it], it))
    )
    first = f"cluster {cluster}: {count(len(rows), 'agent')}" + (f", {summary}" if summary else "")
    if newest is None:
        return [fit(first, width)]
    second = f"revision {newest['number']} by {newest['author']} {duration(now_s - newest['time_s'])} ago"
    second += ", going down" if newest["down"] else ""
    return [f"{first}; {second}"] if len(first) + len(second) + 2 <= width else [fit(first, width), fit(second, width)]


def _machine_line(machine: str, answer: Mapping[str, Any] | None, peer: str | None, silent_s: float | None) -> str:
    if peer == Phase.UNREACHABLE and answer is None:
        since = f" for {duration(silent_s)}" if silent_s is not None else ""
        return f"{machine}: unreachable{since}"
    if answer is None:
        return f"{machine}: {_STATES.get(peer or '', peer or 'no node seen')}"
    node, ahead_s = answer["node"], answer.get("clock_s", 0.0)
    memory = node.get("memory_mb")
    line = f"{machine}: node {node['pid']}, up {duration(node['uptime_s'])}"
    line += f", {memory:.0f} MB" if memory is not None else ""
    line += budget(node.get("memory_budget"))
    if abs(ahead_s) >= CLOCKS_AGREE_S:
        line += f", its clock {duration(abs(ahead_s))} {'ahead' if ahead_s > 0 else 'behind'}"
    return line


#: What membership's words mean to a reader.
_STATES: Final = {"absent": "its machine answers, but no node runs there", "left": "its node has ended"}


def _notes(answers: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """Why the newest revision was made, when that was not its author's wish."""
    revisions = [answer["revision"] for answer in answers if answer["revision"]]
    newest = max(revisions, key=lambda it: int(it["number"]), default=None)
    return [cut(newest["note"], width)] if newest and newest.get("note") else []


def _troubles(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the nodes' own folders."""
    return [f"{it['machine']}: {it['node']['trouble']}" for it in answers if it["node"].get("trouble")]


def _disagreements(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Machines that act on different revisions: an operator has to know."""
    numbers = {machine: number for answer in answers for machine, number in answer.get("revisions", {}).items()}
    told = {answer["machine"]: answer["revision"] for answer in answers if answer["revision"]}
    numbers |= {machine: revision["number"] for machine, revision in told.items()}
    known = {machine: digest for answer in answers for machine, digest in answer.get("digests", {}).items()}
    digests = set((known | {machine: revision.get("digest") for machine, revision in told.items()}).values())
    if len(set(numbers.values())) < 2 and len(digests) < 2:
        return []
    each = [
        f"{machine} {number}" + (f" by {told[machine]['author']}" if machine in told else "")
        for machine, number in sorted(numbers.items())
    ]
    return [f"machines are on different revisions ({', '.join(each)}): `agentkit up` brings them together"]
