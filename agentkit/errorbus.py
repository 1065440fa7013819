"""The error bus inside one agent: counts every report, tells few of them in full, and hands them over in batches.

`report` may be called from any thread, before the loop exists and after it was closed; it never raises, and waits for nothing but a
lock that is held for microseconds. A storm costs no more memory than 256 kinds of error take, and no report is lost without being
counted: what is not told on its own is in the count of its kind. Who sends the batches is agent/error_exporter.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentkit.clock import SYSTEM_CLOCK, Clock
from agentkit.observe import reports
from agentkit.observe.reports import ErrorGroup, Severity

#: Kinds of error that wait at most; further ones share one kind for each severity.
MAX_GROUPS: Final = 256
#: Kinds, and characters, of one batch.
BATCH_GROUPS: Final = 64
BATCH_CHARS: Final = 256 * 1024
#: Reports that are told in full (a log line, context, traceback): so many a second, and so many at once after a quiet time.
TOLD_PER_S: Final = 10.0
TOLD_AT_ONCE: Final = 100
#: Of one kind between two batches: so many, then one a second, so that a storm of one kind leaves room for the others.
TOLD_OF_ONE_KIND: Final = 20
#: Shorter values of secrets are not looked for in texts: they would be found everywhere.
MIN_SECRET: Final = 4

_Key = tuple[Severity, str, str]


@dataclass(frozen=True, slots=True)
class Telling:
    """A report that is worth a line in the log."""

    severity: Severity
    message: str
    context: Mapping[str, Any]
    untold: int  #: reports of its kind that had no line since the last one of its kind that had


@dataclass(frozen=True, slots=True)
class Batch:
    """What is sent at once. It stays the same, and is sent again, until somebody says that it was taken."""

    source: str  #: of this process alone
    number: int  #: 1, 2, 3, ... so that a node that has it already does not count it again
    groups: tuple[ErrorGroup, ...]

    @property
    def reports(self) -> int:
        return sum(group.count for group in self.groups)

    def to_wire(self) -> dict[str, Any]:
        return {"source": self.source, "number": self.number, "groups": [group.to_wire() for group in self.groups]}


class ErrorBus:
    """One for a process, made after the fork. Every method is for every thread."""

    def __init__(self, *, hide: Iterable[str] = (), clock: Clock = SYSTEM_CLOCK) -> None:
        """`hide`: secrets that must not be seen in messages, contexts and tracebacks."""
        self.on_pending: Callable[[], None] = _nothing  #: something waits to be taken; called by whoever reports
        self.reported: dict[str, int] = dict.fromkeys(reports.SEVERITIES, 0)  #: all of them, by severity
        self.suppressed = 0  #: those without a line of their own in the log
        self.lost = 0  #: those that a node refused for good, or that could not even be looked at
        self._clock = clock
        self._hide = tuple(sorted((text for text in hide if len(text) >= MIN_SECRET), key=len, reverse=True))
        # reentrant: a destructor or signal handler may report while this very thread holds it
        self._lock = threading.RLock()
        self._pending: dict[_Key, ErrorGroup] = {}
        self._told: dict[_Key, _Told] = {}
        self._batch: Batch | None = None
        self._number = 0
        self._source = os.urandom(8).hex()
        self._tokens = float(TOLD_AT_ONCE)
        self._tokens_s = clock.now_s()
        self._unmentioned = 0

    @property
    def waiting(self) -> int:
        """Reports that nobody has taken yet."""
        with self._lock:
            unsent = self._batch.reports if self._batch else 0
            return unsent + sum(group.count for group in self._pending.values())

    @property
    def groups(self) -> tuple[ErrorGroup, ...]:
        """The kinds that wait, oldest first, without those of the batch under way."""
        with self._lock:
            return tuple(self._pending.values())

    def report(
        self,
        severity: str,
        message: object,
        context: Mapping[str, Any] | None = None,
        *,
        exc: BaseException | None = None,
        kind: str = "",
    ) -> Telling | None:
        """Count it; what to log of it, or None when there were enough lines like it. Never raises.

        `exc` gives kind, place and traceback; `kind` names what reports by itself."""
        try:
            return self._report(severity, message, context or {}, exc, kind)
        except Exception:  # noqa: BLE001 - whatever an author's objects do when they are looked at
            with self._lock:
                self.lost += 1
            return None

    def batch(self) -> Batch | None:
        """The next to be sent: the same again until it is `taken`; None when nothing waits."""
        with self._lock:
            if self._batch is None and self._pending:
                taken: list[ErrorGroup] = []
                chars = 0
                for key in tuple(self._pending)[:BATCH_GROUPS]:
                    group = self._pending[key]
                    chars += len(group.trace) + len(group.message) + reports.MAX_VALUE * len(group.context)
                    if taken and chars > BATCH_CHARS:
                        break
                    taken.append(self._pending.pop(key))
                    self._told.pop(key, None)
                self._number += 1
                self._batch = Batch(self._source, self._number, tuple(taken))
            return self._batch

    def taken(self, batch: Batch, *, refused: bool = False) -> None:
        """`batch` has arrived, or (`refused`) never will."""
        with self._lock:
            if self._batch is batch:
                self._batch = None
                if refused:
                    self.lost += batch.reports

    def unmentioned(self) -> int:
        """Reports without a line of their own since this was last asked, that no later line of their kind has mentioned."""
        with self._lock:
            found, self._unmentioned = self._unmentioned, 0
            return found

    def _report(
        self, severity: str, message: object, context: Mapping[str, Any], exc: BaseException | None, kind: str
    ) -> Telling | None:
        known, note = reports.severity_of(severity)
        text = reports.text_of(message)
        where = reports.where_of(exc) if exc is not None else ""
        key = (
            known,
            kind or (reports.kind_of(exc) if exc is not None else reports.REPORT),
            where or reports.shown(reports.template(text), reports.MAX_WHERE, self._hide),
        )
        with self._lock:
            untold = self._may_tell(key)
            if untold is None:
                self._count(key, text)
        if untold is None:
            self.on_pending()
            return None
        # not under the lock: what an author's objects do when they are shown is their business
        facts = reports.context_of({"note": note, **context} if note else context, self._hide)
        shown = reports.shown(text, reports.MAX_MESSAGE, self._hide)
        trace = reports.trace_of(exc, self._hide) if exc is not None else ""
        with self._lock:
            group = self._count(key, text)
            group.message, group.context, group.trace = shown, facts, group.trace or trace
        self.on_pending()
        return Telling(known, shown, facts, untold)

    def _count(self, key: _Key, text: str) -> ErrorGroup:
        self.reported[key[0]] += 1
        if key not in self._pending and len(self._pending) >= MAX_GROUPS:
            key, text = (key[0], reports.REPORT, reports.MANY), reports.MANY
        now_s = self._clock.wall_s()
        group = self._pending.get(key)
        if group is None:
            severity, kind, where = key
            group = self._pending[key] = ErrorGroup(
                severity=severity, kind=kind, where=where, message="", first_s=now_s
            )
            group.message = reports.shown(text, reports.MAX_MESSAGE, self._hide)
        group.count += 1
        group.last_s = now_s
        return group

    def _may_tell(self, key: _Key) -> int | None:
        """None: there is enough of it. Else how many of its kind were not told since the last."""
        now_s = self._clock.now_s()
        self._tokens = min(TOLD_AT_ONCE, self._tokens + (now_s - self._tokens_s) * TOLD_PER_S)
        self._tokens_s = now_s
        told = self._told.get(key)
        if told is None and len(self._told) < MAX_GROUPS:
            told = self._told[key] = _Told()
        if self._tokens < 1 or (told and told.times >= TOLD_OF_ONE_KIND and now_s - told.last_s < 1.0):
            self.suppressed += 1
            self._unmentioned += 1
            if told:
                told.untold += 1
            return None
        self._tokens -= 1
        if not told:  # too many kinds to keep watch over each
            return 0
        told.times += 1
        told.last_s = now_s
        untold, told.untold = told.untold, 0
        self._unmentioned -= min(untold, self._unmentioned)
        return untold


@dataclass(slots=True)
class _Told:
    """How much of one kind was told since the last batch."""

    times: int = 0
    last_s: float = 0.0
    untold: int = 0


def _nothing() -> None:
    """Nobody takes what waits."""
