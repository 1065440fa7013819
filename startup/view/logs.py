"""Lines of several agents' logs, merged by time and made readable. Pure: text in, text out."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from agentkit.names import AgentId
from startup.view.colour import CYAN, DIM, RED, YELLOW, paint

#: Fields that stand at the front of a rendered line, or say nothing to a reader when they are null.
_FRONT: Final = frozenset(
    {"timestamp", "level", "service", "logger", "message", "exception", "stack", "memory_used_mb"}
)
_LEVEL_COLOURS: Final = {"WARNING": YELLOW, "ERROR": RED, "CRITICAL": RED, "DEBUG": DIM}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of one agent's log. What is no JSON (prints, tracebacks) has the time of the line before it."""

    id: AgentId
    time_s: float  #: since the epoch; 0.0 before the first line that tells
    text: str
    fields: Mapping[str, Any] | None = None  #: None: the line is plain text


def parse(id: AgentId, texts: Iterable[str], *, after_s: float = 0.0) -> Iterator[LogLine]:
    """Lines in file order. Times never go back within a file: threads may write a little out of order, readers merge files."""
    latest_s = after_s
    for text in texts:
        fields = _json_object(text)
        if fields is not None:
            latest_s = max(latest_s, _epoch_s(fields.get("timestamp")))
        yield LogLine(id=id, time_s=latest_s, text=text, fields=fields)


def merged(
    files: Iterable[Iterable[LogLine]], ahead_s: Mapping[str, float] = MappingProxyType({})
) -> Iterator[LogLine]:
    """All lines by time; lines of one file keep their order. `ahead_s`: by how much a machine's clock is ahead of ours."""
    return heapq.merge(*files, key=lambda line: line.time_s - ahead_s.get(line.id.machine, 0.0))


def render(line: LogLine, *, label: int, colour: bool = False) -> list[str]:
    """The line for people, a traceback below it. `label`: columns for the agent's name; 0: none."""
    who = paint(f"{line.id.instance[:label]:<{label}} ", CYAN, on=colour) if label else ""
    fields = line.fields
    if fields is None:
        stamp = " " * 12 if line.time_s == 0 else paint(_clock(line.time_s), DIM, on=colour)
        return [f"{stamp} {who}{line.text}"]
    level = str(fields.get("level", ""))
    extra = " ".join(
        f"{key}={_short(value)}" for key, value in fields.items() if key not in _FRONT and value is not None
    )
    head = paint(_clock(line.time_s), DIM, on=colour)
    shown = f"{head} {who}{paint(f'{level:<7}', _LEVEL_COLOURS.get(level, '0'), on=colour)} {fields.get('message', '')}"
    result = [shown + (f"  {paint(extra, DIM, on=colour)}" if extra else "")]
    for key in ("exception", "stack"):
        if fields.get(key):
            result += [f"    {more}" for more in str(fields[key]).splitlines()]
    return result


def document(line: LogLine) -> dict[str, Any]:
    """The line as JSON: its own fields, or its text as `message`, and whose it is."""
    stamp = datetime.fromtimestamp(line.time_s, UTC).isoformat(timespec="milliseconds") if line.time_s else None
    fields = line.fields if line.fields is not None else {"timestamp": stamp, "message": line.text}
    return {"agent": str(line.id), **fields}


def plain(texts: Sequence[str]) -> list[str]:
    """A log tail for a message: JSON lines reduced to what they say, the last lines of a traceback included."""
    nobody = AgentId.parse("m/a")
    return [row.strip("\n") for line in parse(nobody, texts) for row in render(line, label=0)]


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _epoch_s(stamp: object) -> float:
    """0.0 for what is no time: such a line stays where it stands."""
    if isinstance(stamp, int | float):
        return float(stamp)
    try:
        moment = datetime.fromisoformat(str(stamp))
    except ValueError:
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _clock(time_s: float) -> str:
    """Local time of day with milliseconds, as people compare it with their own clock."""
    return time.strftime("%H:%M:%S", time.localtime(time_s)) + f".{int(time_s * 1000) % 1000:03d}"


def _short(value: object) -> str:
    return value if isinstance(value, str) and value and " " not in value else json.dumps(value, default=str)
