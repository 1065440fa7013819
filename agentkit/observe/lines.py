"""How a log record becomes a line: JSON for machines, short text for people. No I/O, and nothing here raises."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

#: Keys of a line that are ours: a caller's field of that name gets an underscore behind it.
_OURS: Final = frozenset({"timestamp", "level", "service", "logger", "message", "memory_used_mb", "exception", "stack"})
#: The record's attribute that holds the fields of our own loggers.
FIELDS: Final = "agentkit_fields"
#: What the standard library itself puts on a record; anything else came by `extra=`.
_PLAIN_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_COLOURS: Final = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
#: Nothing that is logged may steer the reader's terminal: all of C0 and C1 but tab and line feed.
_CONTROL_CHARACTERS: Final = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
_FORMATTER: Final = logging.Formatter()


def as_json(
    record: logging.LogRecord, *, service: str, task_id: str, memory_mb: float, traced: Mapping[str, str] = {}
) -> str:
    """One JSON object and a line feed. Values that JSON has no word for are told as text."""
    fields = _fields(record)
    line = {
        "timestamp": f"{_utc_second(int(record.created))}.{int(record.created * 1000) % 1000:03d}Z",
        "level": record.levelname,
        "service": service,
        "logger": record.name,
        "message": _message(record),
        "task_id": fields.pop("task_id", None) or task_id or None,
        "duration_ms": fields.pop("duration_ms", None),
        "memory_used_mb": memory_mb,
        **traced,
    }
    for key, value in fields.items():
        line[f"{key}_" if key in _OURS else str(key)] = value
    if record.exc_info:
        line["exception"] = _exception(record)
    if record.stack_info:
        line["stack"] = record.stack_info
    try:
        return _encode(line) + "\n"
    except (TypeError, ValueError, RecursionError):  # a tuple as a key, a NaN, a circle: told by field, not lost
        return _encode({key: _encodable(value) for key, value in line.items()}) + "\n"


def as_text(record: logging.LogRecord, *, task_id: str, colours: bool, traced: Mapping[str, str] = {}) -> str:
    """Local time, level, message, fields; traceback and stack on lines below. Ends in a line feed."""
    clock_time = time.strftime("%H:%M:%S", time.localtime(record.created))
    fields = {"task_id": task_id, **traced, **_fields(record)}
    told = "".join(f" {_printable(str(key))}={_short(value)}" for key, value in fields.items() if value != "")
    level = f"{record.levelname:<7}"
    if colours:
        level = f"{_COLOURS.get(record.levelno, '')}{level}\x1b[0m"
        told = f"\x1b[2m{told}\x1b[0m" if told else ""
    head = f"{clock_time}.{int(record.created * 1000) % 1000:03d} {level} {_printable(_message(record))}{told}\n"
    below = [_exception(record)] if record.exc_info else []
    below += [record.stack_info] if record.stack_info else []
    return head + "".join(f"{_printable(text)}\n" for text in below)


def formatted(event: object, args: tuple[Any, ...]) -> str:
    """`event % args` by the standard library's rules; both as they are when they do not fit each other."""
    text = _text(event)
    if not args:
        return text
    try:
        return text % (args[0] if len(args) == 1 and isinstance(args[0], Mapping) and args[0] else args)
    except Exception:  # noqa: BLE001 - whatever an argument's own __str__ or __format__ raises
        return f"{text} {_text(args)}"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - other libraries' records are formatted only here
        return f"{_text(record.msg)} {_text(record.args)}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, FIELDS, None)
    if fields is not None:
        return dict(fields)
    return {key: value for key, value in vars(record).items() if key not in _PLAIN_RECORD}


def _exception(record: logging.LogRecord) -> str:
    if not record.exc_text and record.exc_info:
        record.exc_text = _FORMATTER.formatException(record.exc_info)
    return record.exc_text or ""


@lru_cache(maxsize=1)
def _utc_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001 - a broken __str__ must not cost the line
        return f"<{type(value).__name__} whose __str__ raised {type(exc).__name__}>"


_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, default=_text, separators=(",", ":"), check_circular=True
).encode


def _encodable(value: object) -> object:
    try:
        _encode(value)
    except (TypeError, ValueError, RecursionError):
        return _text(value)
    return value


def _short(value: object) -> str:
    text = _printable(_text(value)).replace("\n", "\\n")
    return repr(text) if " " in text or not text else text


def _printable(text: str) -> str:
    return text if text.isprintable() else text.translate(_CONTROL_CHARACTERS)
