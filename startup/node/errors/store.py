"""Errors of one machine's agents in SQLite: one row for each kind, with its count, kept small, the same after every restart.

Blocking, and for one thread at a time. A batch and its number are committed together, so a batch that is offered again because the
node died before it could say "stored" is not counted twice. WAL with synchronous=NORMAL: a killed node loses nothing that it
acknowledged, a power cut at most the last moments."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from agentkit.observe.log import get_logger
from agentkit.observe.reports import SEVERITIES, ErrorGroup, fingerprint, rank

log = get_logger("node.errors")

#: Kinds of error kept on a machine, and of one agent among them. 12 kB each at most, a few hundred bytes mostly.
MAX_GROUPS: Final = 2_000
MAX_GROUPS_OF_ONE: Final = 200
#: Processes whose last batch is remembered.
MAX_SOURCES: Final = 5_000
#: Damaged files that are kept beside the good one, and how long they are told of, in seconds.
MAX_DAMAGED: Final = 2
NOTE_FOR_S: Final = 7 * 86_400.0

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE groups (
    id TEXT PRIMARY KEY, agent TEXT NOT NULL, severity INTEGER NOT NULL, kind TEXT NOT NULL, place TEXT NOT NULL,
    message TEXT NOT NULL, count INTEGER NOT NULL, first_s REAL NOT NULL, last_s REAL NOT NULL, context TEXT NOT NULL,
    trace TEXT NOT NULL, resolved_s REAL, resolved_by TEXT NOT NULL DEFAULT '', reopened INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX groups_by_version ON groups (version);
CREATE INDEX groups_by_agent ON groups (agent);
CREATE TABLE sources (source TEXT PRIMARY KEY, number INTEGER NOT NULL, seen_s REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""
_COLUMNS: Final = (
    "id", "agent", "severity", "kind", "place", "message", "count", "first_s", "last_s", "context", "trace", "resolved_s",
    "resolved_by", "reopened", "version",
)  # fmt: skip
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What is to be stored in one piece."""

    agent: str  #: AgentId, as text
    incarnation: int
    groups: tuple[ErrorGroup, ...]
    source: str = ""  #: empty: the node's own word, which comes once
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One group of a batch, and what it was added to."""

    id: str
    group: ErrorGroup
    total: int
    is_new: bool
    is_reopened: bool  #: somebody had resolved it


class StoreFailed(OSError):
    """The file can't be read or written now: the disk is full, or not ours to write."""


class ErrorStore:
    """Opened by the first use. Every method raises StoreFailed, or another OSError."""

    def __init__(self, path: Path, *, wall_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall_s = wall_s
        self._db: sqlite3.Connection | None = None

    def store(self, batches: Iterable[Offered]) -> list[list[Stored] | None]:
        """In one transaction; for each batch what came of it, None where it was stored before."""
        offered = list(batches)
        return self._guarded(lambda db: self._store(db, offered))

    def listed(
        self, *, agent: str = "", severity: str = "info", resolved: bool = False, after: str = "", limit: int = 100
    ) -> dict[str, Any]:
        """The kinds that changed last come first, without context and traceback. `after`: only those that changed since this
        cursor was told."""
        return self._guarded(
            lambda db: _listed(db, agent, rank(severity), resolved, after, max(1, min(limit, 1000)), self._wall_s())
        )

    def find(self, id: str) -> list[dict[str, Any]]:
        """All of the kinds whose id begins with `id`, everything that is known of each; at most ten."""
        found = "SELECT {} FROM groups WHERE id >= ? AND id < ? LIMIT 10".format(", ".join(_COLUMNS))  # noqa: S608 - our columns
        return self._guarded(lambda db: [_told(row) for row in db.execute(found, (id, id + "g"))])

    def resolve(self, id: str, by: str) -> dict[str, Any] | None:
        """Mark it as dealt with; None when there is none. It is reopened when it happens again."""
        return self._guarded(lambda db: self._resolve(db, id, by))

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    # -- the file

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in a transaction; once more on a new file when this one turns out to be damaged."""
        for is_last in (False, True):
            try:
                if self._db is None:
                    self._db = self._opened()
                with self._db:
                    return work(self._db)
            except sqlite3.DatabaseError as exc:
                code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
                self.close()  # whatever it was, the next attempt begins anew
                if is_last or code not in _CORRUPT:
                    raise StoreFailed(f"{self._path}: {exc}") from exc
                self._move_aside(str(exc))
        raise AssertionError("unreachable")

    def _opened(self) -> sqlite3.Connection:
        is_new = not self._path.exists()
        if is_new:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(self._path, timeout=5.0, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _VERSION and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise _damaged(f"format {version}, this version writes {_VERSION}")
            if version != _VERSION:
                with db:
                    db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
                    facts = [("epoch", os.urandom(4).hex()), ("version", 0)]
                    db.executemany("INSERT INTO facts VALUES (?, ?)", facts)
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _damaged(verdict)
        except BaseException:
            db.close()
            raise
        return db

    def _move_aside(self, why: str) -> None:
        """A damaged file is kept for whoever wants to look into it; its journals belong to it."""
        aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._wall_s())}")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            journal = self._path.with_name(self._path.name + suffix)
            with suppress(FileNotFoundError):
                journal.replace(aside.with_name(aside.name + suffix))
        log.error("errors.damaged", file=str(self._path), moved_to=str(aside), why=why)
        for old in sorted(self._path.parent.glob(f"{self._path.name}.damaged-*[0-9]"))[:-MAX_DAMAGED]:
            for suffix in ("", "-wal", "-shm"):
                old.with_name(old.name + suffix).unlink(missing_ok=True)
        self._db = self._opened()
        with self._db as db:
            note = f"the file with earlier errors was damaged ({why}); it was moved to {aside}"
            db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", [("damaged", note), ("damaged_s", self._wall_s())]
            )

    # -- what is in it

    def _store(self, db: sqlite3.Connection, batches: Iterable[Offered]) -> list[list[Stored] | None]:
        results: list[list[Stored] | None] = []
        version = _version(db)
        agents: set[str] = set()
        for batch in batches:
            if batch.source and not self._is_next(db, batch):
                results.append(None)
                continue
            stored = []
            for group in batch.groups:
                version += 1
                stored.append(_added(db, batch.agent, group, version))
            results.append(stored)
            if any(found.is_new for found in stored):
                agents.add(batch.agent)
        db.execute("UPDATE facts SET value = ? WHERE name = 'version'", (version,))
        for agent in agents:
            _evict(db, "WHERE agent = ?", (agent,), MAX_GROUPS_OF_ONE)
        if agents:
            _evict(db, "", (), MAX_GROUPS)
        return results

    def _is_next(self, db: sqlite3.Connection, batch: Offered) -> bool:
        row = db.execute("SELECT number FROM sources WHERE source = ?", (batch.source,)).fetchone()
        if row is not None and batch.number <= row[0]:
            return False
        values = (batch.source, batch.number, self._wall_s())
        db.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", values)
        if row is None and db.execute("SELECT count(*) FROM sources").fetchone()[0] > MAX_SOURCES:
            oldest = "SELECT source FROM sources ORDER BY seen_s LIMIT ?"
            db.execute(f"DELETE FROM sources WHERE source IN ({oldest})", (MAX_SOURCES // 10,))  # noqa: S608
        return True

    def _resolve(self, db: sqlite3.Connection, id: str, by: str) -> dict[str, Any] | None:
        change = "UPDATE groups SET resolved_s = ?, resolved_by = ?, version = ? WHERE id = ? AND resolved_s IS NULL"
        version = _version(db) + 1
        db.execute(change, (self._wall_s(), by[:100], version, id))
        db.execute("UPDATE facts SET value = ? WHERE name = 'version'", (version,))
        row = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM groups WHERE id = ?", (id,)).fetchone()  # noqa: S608
        return _told(row) if row else None


def _damaged(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _version(db: sqlite3.Connection) -> int:
    """Grows with every change; not what the rows hold at most, as the newest may have been dropped."""
    return int(db.execute("SELECT value FROM facts WHERE name = 'version'").fetchone()[0])


def _added(db: sqlite3.Connection, agent: str, group: ErrorGroup, version: int) -> Stored:
    id = fingerprint(agent, group.kind, group.where)
    known = db.execute("SELECT count, severity, trace, resolved_s, first_s FROM groups WHERE id = ?", (id,)).fetchone()
    severity = SEVERITIES.index(group.severity)
    context = json.dumps(group.context, ensure_ascii=False)
    if known is None:
        values = (id, agent, severity, group.kind, group.where, group.message, group.count, group.first_s, group.last_s,
                  context, group.trace, None, "", 0, version)  # fmt: skip
        db.execute(f"INSERT INTO groups VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - question marks
        return Stored(id=id, group=group, total=group.count, is_new=True, is_reopened=False)
    count, worst, trace, resolved_s, first_s = known
    is_reopened = resolved_s is not None
    total = min(count + group.count, 2**62)
    db.execute(
        "UPDATE groups SET count = ?, severity = ?, message = ?, first_s = ?, last_s = max(last_s, ?), trace = ?, version = ?, "
        "context = CASE WHEN ? = '{}' THEN context ELSE ? END, "
        "resolved_s = NULL, resolved_by = '', reopened = reopened + ? WHERE id = ?",
        (total, severity if is_reopened else max(worst, severity), group.message, min(first_s, group.first_s), group.last_s,
         trace or group.trace, version, context, context, int(is_reopened), id),
    )  # fmt: skip
    return Stored(id=id, group=group, total=total, is_new=False, is_reopened=is_reopened)


def _evict(db: sqlite3.Connection, where: str, values: tuple[Any, ...], limit: int) -> None:
    """Those that were resolved first, then those that have not happened for longest; how much that was is remembered."""
    (present,) = db.execute(f"SELECT count(*) FROM groups {where}", values).fetchone()  # noqa: S608 - our own words
    if present <= limit:
        return
    oldest = f"SELECT id, count FROM groups {where} ORDER BY resolved_s IS NULL, version LIMIT ?"  # noqa: S608
    with closing(db.execute(oldest, (*values, present - limit))) as found:
        gone = found.fetchall()
    db.executemany("DELETE FROM groups WHERE id = ?", [(id,) for id, _ in gone])
    for name, much in (("evicted_groups", len(gone)), ("evicted_reports", sum(count for _, count in gone))):
        db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + ?", (name, much, much)
        )


def _listed(
    db: sqlite3.Connection, agent: str, severity: int, resolved: bool, after: str, limit: int, now_s: float
) -> dict[str, Any]:
    facts = dict(db.execute("SELECT name, value FROM facts"))
    epoch, _, number = after.partition(":")
    since = int(number) if epoch == facts["epoch"] and number.isdigit() else 0
    columns = ", ".join(column for column in _COLUMNS if column not in ("context", "trace"))
    slots = "(agent = ? OR agent LIKE ? ESCAPE '\\' OR agent LIKE ? ESCAPE '\\' OR agent LIKE ? ESCAPE '\\')"
    escaped = agent.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    wanted = (agent, f"%/{escaped}", f"{escaped}#%", f"%/{escaped}#%") if agent else ()
    rows = db.execute(
        f"SELECT {columns} FROM groups WHERE version > ? AND severity >= ? AND (? OR resolved_s IS NULL) "  # noqa: S608
        f"{'AND ' + slots if agent else ''} ORDER BY version DESC LIMIT ?",
        (since, severity, resolved, *wanted, limit),
    ).fetchall()
    notes = [facts["damaged"]] if facts.get("damaged_s", 0.0) > now_s - NOTE_FOR_S else []
    if facts.get("evicted_groups"):
        notes.append(
            f"{facts['evicted_groups']} kinds of error with {facts['evicted_reports']} reports were dropped to keep the store small"
        )
    names = [column for column in _COLUMNS if column not in ("context", "trace")]
    return {"groups": [_told(row, names) for row in rows], "cursor": f"{facts['epoch']}:{_version(db)}", "notes": notes}


def _told(row: tuple[Any, ...], names: Iterable[str] = _COLUMNS) -> dict[str, Any]:
    """A row as the command line gets it."""
    told: dict[str, Any] = dict(zip(names, row, strict=True))
    told["severity"] = SEVERITIES[told["severity"]]
    if "context" in told:
        context: Mapping[str, Any] = json.loads(told["context"])
        told["context"] = context
    told["machine"] = told["agent"].partition("/")[0]
    del told["version"]
    return told
