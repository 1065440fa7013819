"""What an error report is: its severity, what makes two of them the same kind of error, and how little of each is kept.

Pure values, shared by agents (which count them) and nodes (which store them). Every text is bounded here, on both ends, and loses
what must not be shown: secrets that are known by value or by the name of their field, passwords in URLs, control characters.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Literal, Self

Severity = Literal["info", "warning", "error", "critical"]

#: From harmless to worst.
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "error", "critical")
#: Words of logging, syslog and older agents for the same.
_WORDS: Final[Mapping[str, Severity]] = {
    **{word: word for word in SEVERITIES},
    **dict.fromkeys(("debug", "trace", "notice", "low", "minor"), "info"),
    **dict.fromkeys(("warn", "medium", "moderate"), "warning"),
    **dict.fromkeys(("err", "exception", "failure", "high", "major", "severe"), "error"),
    **dict.fromkeys(("fatal", "crit", "alert", "emerg", "emergency", "panic", "blocker"), "critical"),
}

#: Longest message, type, location and context value, in characters.
MAX_MESSAGE: Final = 500
MAX_KIND: Final = 120
MAX_WHERE: Final = 240
MAX_VALUE: Final = 200
#: Longest traceback kept, in characters: the first quarter says where it came from, the rest where it broke.
MAX_TRACE: Final = 8_000
#: Innermost frames of a traceback that are kept.
MAX_FRAMES: Final = 25
#: Most fields of a context.
MAX_FIELDS: Final = 16
#: The largest count that is believed.
MAX_COUNT: Final = 2**53

#: Kind of what was reported in words, without an exception.
REPORT: Final = "report"
#: Kind of what a node says of a process.
PROCESS: Final = "process"
#: Where those are counted that are too many kinds to be kept apart.
MANY: Final = "more kinds of error than are kept apart"

_SECRET_NAME: Final = re.compile(
    r"pass(word|wd|phrase)|secret|token|api[_-]?key|private[_-]?key|credential|authoriz|cookie", re.IGNORECASE
)
_URL_PASSWORD: Final = re.compile(r"(?<=://)[^/\s@:]{0,200}:[^/\s@]{1,200}@")
_HIDDEN: Final = "***"
#: What differs between two messages of one kind: uuids, addresses, long hexadecimal words, numbers.
_CHANGING: Final = re.compile(
    r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|0[xX][0-9a-fA-F]+|\b(?=[a-fA-F]*\d)[0-9a-fA-F]{8,64}\b|\d+"
)
#: Control characters but tab and line feed would steer the terminal of whoever reads it; lone surrogates can't be sent.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LIBRARIES: Final = tuple(
    {sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).resolve().parents[1]) + "/", "<frozen"}
)


def severity_of(word: object) -> tuple[Severity, str]:
    """The severity that `word` means, in any case, and a note when it means none: then it counts as `error`."""
    text = word if isinstance(word, str) else str(word)
    known = _WORDS.get(text) or _WORDS.get(text.strip().lower())
    if known:
        return known, ""
    return "error", f"unknown severity {text[:40]!r}, taken as error"


def rank(severity: str) -> int:
    """For comparing: higher is worse."""
    return SEVERITIES.index(severity_of(severity)[0])


def template(message: str) -> str:
    """The message without what changes from one to the next: where a report without an exception comes from."""
    return _CHANGING.sub("#", message[:MAX_WHERE])


def fingerprint(agent: str, kind: str, where: str) -> str:
    """16 hexadecimal digits, the same in every life of agent and node; people are shown the first eight."""
    return blake2b("\0".join((agent, kind, where)).encode("utf-8", "replace"), digest_size=8).hexdigest()


def kind_of(exc: BaseException) -> str:
    """The class, with its module where that is not everybody's."""
    cls = type(exc)
    name = cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"
    return name[-MAX_KIND:]


def where_of(exc: BaseException) -> str:
    """`file:line` of the innermost frame that is the author's own; of the innermost at all when none is. Empty when it was never
    raised."""
    own = innermost = ""
    step = exc.__traceback__
    while step is not None:
        file, is_own = _file(step.tb_frame.f_code.co_filename)
        innermost = f"{file}:{step.tb_lineno}"
        own = innermost if is_own else own
        step = step.tb_next
    return (own or innermost)[-MAX_WHERE:]


@lru_cache(maxsize=2048)
def _file(path: str) -> tuple[str, bool]:
    """The path as the program's authors would say it, and whether the file is theirs."""
    is_own = not path.startswith(_LIBRARIES) and "/site-packages/" not in path
    roots = [root for root in sys.path if root and path.startswith(root.rstrip("/") + "/")]
    if roots:
        return path[len(max(roots, key=len).rstrip("/")) + 1 :], is_own
    return "/".join(path.rsplit("/", 3)[-3:]), is_own


def shown(text: str, limit: int, hide: Iterable[str] = ()) -> str:
    """`text` fit to be kept and shown: without secrets and control characters, at most `limit` characters."""
    text = _UNPRINTABLE.sub("?", _without_secrets(text[: 4 * limit], hide))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _without_secrets(text: str, hide: Iterable[str]) -> str:
    for secret in hide:
        if secret in text:
            text = text.replace(secret, _HIDDEN)
    return _URL_PASSWORD.sub(f"{_HIDDEN}@", text) if "://" in text else text


def is_secret_name(name: str) -> bool:
    """Whether what stands under that name is kept from being shown."""
    return _SECRET_NAME.search(name) is not None


def text_of(value: object) -> str:
    """What `value` says of itself, should it manage to."""
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001 - an author's __str__ may raise anything
        return f"<{type(value).__name__} whose __str__ raised {type(exc).__name__}>"


class _Short(reprlib.Repr):
    """Looks at the beginning of large containers only."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MAX_VALUE
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 6
        self.maxlevel = 3


_short: Final = _Short()


def context_of(given: Mapping[str, Any], hide: Iterable[str] = ()) -> dict[str, Any]:
    """What is kept of a context: at most 16 fields; numbers as they are, everything else as short text."""
    kept: dict[str, Any] = {}
    for key, value in given.items():
        if len(kept) == MAX_FIELDS - 1 and len(given) > MAX_FIELDS:
            kept["…"] = f"{len(given) - len(kept)} more fields"
            break
        name = shown(text_of(key), 60)
        kept[name] = _HIDDEN if is_secret_name(name) else _value(value, hide)
    return kept


def _value(value: object, hide: Iterable[str]) -> object:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is int and -MAX_COUNT <= value <= MAX_COUNT:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, str):
        return shown(value, MAX_VALUE, hide)
    try:
        plain = isinstance(value, (list, dict, tuple, set, frozenset, bytes, int))
        text = _short.repr(value) if plain else text_of(value)
    except Exception as exc:  # noqa: BLE001 - an author's __repr__ may raise anything
        text = f"<{type(value).__name__} whose __repr__ raised {type(exc).__name__}>"
    return shown(text, MAX_VALUE, hide)


def trace_of(exc: BaseException, hide: Iterable[str] = ()) -> str:
    """Its traceback, causes included; the middle is left out where it is too long."""
    try:
        lines = traceback.format_exception(type(exc), exc, exc.__traceback__, limit=-MAX_FRAMES)
    except Exception as failure:  # noqa: BLE001 - source files that change, exceptions with a mind of their own
        return f"(the traceback could not be made: {type(failure).__name__})"
    return _without_middle("".join(lines), hide)


def _without_middle(text: str, hide: Iterable[str]) -> str:
    text = _without_secrets(text, hide)  # before it is cut: half a secret would not be known as one
    if len(text) > MAX_TRACE:
        head = MAX_TRACE // 4
        text = f"{text[:head]}\n  ...\n{text[head + 7 - MAX_TRACE :]}"
    return shown(text, MAX_TRACE)


@dataclass(slots=True, kw_only=True)
class ErrorGroup:
    """Reports of one kind that were counted together. Times are seconds since the epoch on the agent's machine."""

    severity: Severity
    kind: str  #: the exception's class, `report`, `process`, or what reported it by itself
    where: str  #: file:line of the raise, or the message without its numbers
    message: str  #: of the last that was told in full
    count: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    context: dict[str, Any] = field(default_factory=dict)  #: of the last that was told in full
    trace: str = ""  #: of the first that has one

    def to_wire(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Self:
        """Read what an agent sent, with every bound applied again. KeyError, TypeError, ValueError: it is no group."""
        count = int(data["count"])
        if not 0 < count <= MAX_COUNT:
            raise ValueError(f"count {count}")
        first_s, last_s = float(data["first_s"]), float(data["last_s"])
        if not (math.isfinite(first_s) and math.isfinite(last_s)):
            raise ValueError("a time that is no number")
        return cls(
            severity=severity_of(data["severity"])[0],
            kind=shown(str(data["kind"]), MAX_KIND),
            where=shown(str(data["where"]), MAX_WHERE),
            message=shown(str(data["message"]), MAX_MESSAGE),
            count=count,
            first_s=first_s,
            last_s=max(first_s, last_s),
            context=context_of(dict(data.get("context") or {})),
            trace=_without_middle(str(data.get("trace") or ""), ()),
        )
