"""Logs: one JSON object per line for machines, short text on a terminal.

    log = get_logger(__name__)
    log.warning("peer.suspect", peer=peer, missed=3)            # agentkit: event name and fields
    self.logger.info("loaded %s in %d ms", name, took_ms)       # authors: like the standard library

A line has timestamp, level, service, logger, message, task_id, duration_ms, memory_used_mb (the last three null when
unknown), then the caller's fields, then `exception` and `stack`. Everything goes through the standard library's root
logger: structlog in front, one handler behind. So lines of other libraries look the same, handlers that an author adds
see ours, and pytest's caplog works.

Logging never raises and never stops an agent: a line that can't be written (disk full, stream closed, pipe gone) is
dropped and counted. Nothing here holds a thread, a file of its own or a lock that the standard library does not renew
after a fork; loggers made before `configure` follow it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import IO, Any, Final, Literal

from agentkit.errors import ConfigError
from agentkit.observe import lines
from agentkit.observe.process import MemorySampler

# structlog imports rich for its own tracebacks whenever rich is installed: 112 ms and 6.9 MB against 40 ms and 2.0 MB.
# We never render with it, and every process of a fleet inherits this import.
_without_rich = "rich" not in sys.modules and "structlog" not in sys.modules
if _without_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    if _without_rich:
        del sys.modules["rich"]

Format = Literal["json", "text", "auto"]

#: The request that is being handled: its text is the task id of its lines, and its attribute `span` says its trace. Dispatch sets
#: it; a thread sees it in a copied context. (One variable that calls and logs both look at: to set another costs 0.2 us a call.)
handling: ContextVar[Any] = ContextVar("agentkit_call", default=None)

_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}


class Logger(structlog.stdlib.BoundLogger):
    """A standard library logger that also takes fields: `log.info("text %s", arg, field=value)`; `bind(field=...)`.

    `exc_info=`, `stack_info=` and `extra=` mean what they mean there; `stacklevel=` is accepted and has no effect."""

    def log(self, level: int, event: str | None = None, *args: Any, **fields: Any) -> None:
        self._hand_over(level, event, args, fields)

    def _proxy_to_logger(self, method_name: str, event: str | None = None, *args: Any, **fields: Any) -> None:
        self._hand_over(_LEVELS[method_name], event, args, fields)

    def _hand_over(self, level: int, event: object, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        logger = self._logger
        if not logger.isEnabledFor(level):
            return
        exc_info = fields.pop("exc_info", None)
        if isinstance(exc_info, BaseException):
            exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
        elif exc_info and not isinstance(exc_info, tuple):
            exc_info = sys.exc_info() if sys.exc_info()[0] else None
        stack = logger.findCaller(stack_info=True)[3] if fields.pop("stack_info", False) else None
        fields.pop("stacklevel", None)
        # The text is made here, where a format that does not fit its arguments can't raise: other handlers would.
        record = logging.LogRecord(logger.name, level, "", 0, lines.formatted(event, args), None, exc_info, sinfo=stack)
        record.agentkit_fields = {**self._context, **(fields.pop("extra", None) or {}), **fields}
        logger.handle(record)


class LineHandler(logging.Handler):
    """Renders each record as one line and writes it with one write (a stream without a descriptor: one `write`)."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self._pid = 0
        self._memory = MemorySampler()

    def point(self, *, service: str, as_json: bool, colours: bool, stream: IO[Any]) -> None:
        """Write there and so from now on."""
        if self._pid != os.getpid():  # a fork begins with nothing dropped
            self._pid, self.dropped = os.getpid(), 0
        self._service = service
        self._as_json = as_json
        self._colours = colours
        self._stream = stream
        self._fd = _descriptor(stream)
        self._torn = False  # the last write ended inside a line

    def emit(self, record: logging.LogRecord) -> None:
        try:
            request = handling.get()
            task, span = str(request or ""), getattr(request, "span", None)
            traced = {} if span is None else {"trace_id": span.trace_id, "span_id": span.span_id}
            if self._as_json:
                line = lines.as_json(
                    record, service=self._service, task_id=task, memory_mb=self._memory.mb(), traced=traced
                )
            else:
                line = lines.as_text(record, task_id=task, colours=self._colours, traced=traced)
            self._write(line)
        except Exception:  # noqa: BLE001 - whatever an author logs, and wherever to: the agent goes on
            self.dropped += 1

    def _write(self, line: str) -> None:
        if getattr(self._stream, "closed", False):
            # Not only the stream's error: its descriptor's number may belong to somebody else's socket by now.
            raise ValueError("the log's stream is closed")
        if self._fd is None:
            self._stream.write(line)
            self._stream.flush()
            return
        data = line.encode("utf-8", "backslashreplace")
        if self._torn:
            data = b"\n" + data
        written = os.write(self._fd, data)
        # Short writes happen on a full disk and on a pipe that nobody empties: the rest of the line is given up, and
        # the next line starts on a line of its own.
        self._torn = written < len(data)
        self.dropped += self._torn


_handler: Final = LineHandler()


def configure(*, service: str, fmt: Format = "auto", level: str = "INFO", stream: IO[Any] | None = None) -> None:
    """Send everything that is logged in this process to `stream` (stderr if None) from now on; may be called again.

    `auto` is text on a terminal and JSON elsewhere. Plain StreamHandlers on the root logger (`logging.basicConfig`) are
    taken off, since they would print every line twice; other handlers stay. Raises ConfigError for an unknown level."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(at="log level", got=level, want="DEBUG, INFO, WARNING, ERROR or CRITICAL")
    out = sys.stderr if stream is None else stream
    terminal = _is_terminal(out)
    _handler.point(
        service=service,
        as_json=fmt == "json" or (fmt == "auto" and not terminal),
        colours=terminal and "NO_COLOR" not in os.environ,
        stream=out,
    )
    root = logging.getLogger()
    for old in tuple(root.handlers):
        if type(old) is logging.StreamHandler:
            root.removeHandler(old)
    # A zygote that has configured its own log leaves its children little to change, so little memory of their own.
    if root.level != number:
        root.setLevel(number)
    if _handler not in root.handlers:
        root.addHandler(_handler)
        logging.captureWarnings(True)
        structlog.configure(processors=[], wrapper_class=Logger, logger_factory=structlog.stdlib.LoggerFactory())


def get_logger(name: str | None = None) -> Logger:
    """A logger by name (`agentkit` if None); cheap, usable before `configure`, in every thread and after a fork.

    Before `configure`, warnings and worse go to stderr as the standard library prints them."""
    return Logger(logging.getLogger(name or "agentkit"), [], {})


def dropped_lines() -> int:
    """Lines that could not be written since this process first called `configure`."""
    return _handler.dropped


def _descriptor(stream: IO[Any]) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):  # StringIO, a capture, a stream already closed
        return None


def _is_terminal(stream: IO[Any]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False
