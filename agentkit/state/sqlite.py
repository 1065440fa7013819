"""States in SQLite: one file for each agent, beside its other data.

Two tables take turns, so each snapshot has pages of its own: what damages one leaves the other readable. Nobody reads the file
while it is written but us, so WAL is there for what it promises about kill -9 and power cuts: a transaction is there whole, or not.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from agentkit.errors import StateDamaged, StateError, StateFenced, StateNotSaved, StateUnreachable
from agentkit.names import Incarnation
from agentkit.state.store import PLACES, Found, Snapshot

#: In the agent's data directory. An operator who removes it (and what begins with its name) lets the agent begin anew.
FILE_NAME: Final = "agentkit-state.db"
#: How long another process's transaction is waited for, in seconds: there is one for a moment, in a roll.
_BUSY_S: Final = 5.0
#: Result codes of SQLite that mean damage: an error in the schema, a broken page, no database at all (sqlite.org/rescode.html).
_DAMAGE: Final = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_COLUMNS: Final = "number, version, incarnation, saved_s, checksum, data"
_SCHEMA: Final = (
    "CREATE TABLE lease (one INTEGER PRIMARY KEY CHECK (one = 1), incarnation INTEGER NOT NULL)",
    "INSERT INTO lease VALUES (1, 0)",
    *(
        f"CREATE TABLE snapshot_{place} (number INTEGER PRIMARY KEY, version INTEGER NOT NULL, incarnation INTEGER NOT NULL, "
        f"saved_s REAL NOT NULL, checksum BLOB NOT NULL, data BLOB NOT NULL)"
        for place in range(PLACES)
    ),
)


class SqliteStore:
    """Safe to be called from changing threads, one at a time."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        """`folder`: exists by the time of the first use."""
        self.path = folder / FILE_NAME
        self._db: sqlite3.Connection | None = None
        self._lock: int | None = None

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def remedy(self) -> str:
        return f"put a copy back, or move {self.path}* away"

    def claim(self, incarnation: Incarnation) -> None:
        if not incarnation:
            self._lock_out_others()
        # Not on disk before it counts: after a power cut there is nobody to be kept out, and every start would wait for it
        with self._transaction(is_durable=False) as db:
            holder = self._holder(db)
            if holder > incarnation:
                raise StateFenced(self.where, incarnation, holder)
            db.execute("UPDATE lease SET incarnation = ?", (incarnation,))

    def load(self) -> Found:
        snapshots, unreadable = [], []
        for place in range(PLACES):
            try:
                with _told(self.path):
                    snapshots += _read(self._opened(), f"snapshot_{place}")
            except StateDamaged as exc:
                unreadable.append(str(exc))
        if len(unreadable) == PLACES:
            raise StateDamaged(unreadable[0])
        return Found(sorted(snapshots, key=lambda it: -it.number), unreadable)

    def save(self, snapshot: Snapshot) -> None:
        table = f"snapshot_{snapshot.place}"
        is_ours = False
        try:
            with self._transaction(is_durable=True) as db:
                holder = self._holder(db)
                if holder != snapshot.incarnation:
                    raise StateFenced(self.where, snapshot.incarnation, holder)
                is_ours = True
                db.execute(f"DELETE FROM {table}")  # noqa: S608 - a name of ours
                db.execute(f"INSERT INTO {table} ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", _row(snapshot))  # noqa: S608
                if _read(db, table) != [snapshot]:  # a damaged schema takes what it does not give back
                    raise StateDamaged("what was written is not what is read")
        except StateNotSaved:
            raise
        except StateDamaged as exc:
            if not is_ours:
                raise StateNotSaved(str(exc)) from exc
            self._rebuild(snapshot, exc)
        except StateError as exc:
            raise StateNotSaved(str(exc)) from exc

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            if not self.path.exists():
                _create(self.path)
            # Autocommit, as transactions are begun by hand; rw: a file that is gone by now is not made again
            db = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=rw",
                uri=True, isolation_level=None, timeout=_BUSY_S, check_same_thread=False,
            )  # fmt: skip
            try:
                db.execute("PRAGMA cache_size=-64")  # in KiB: nothing is read twice, and an idle agent keeps none of it
                self._holder(db)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _holder(self, db: sqlite3.Connection) -> int:
        row = db.execute("SELECT incarnation FROM lease").fetchone()
        if row is None or not isinstance(row[0], int):
            raise StateDamaged(f"{self.path} does not say whose it is")
        return row[0]

    @contextmanager
    def _transaction(self, *, is_durable: bool) -> Iterator[sqlite3.Connection]:
        with _told(self.path):
            db = self._opened()
            db.execute(f"PRAGMA synchronous={'FULL' if is_durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has ended it already
                    db.execute("ROLLBACK")
                raise

    def _rebuild(self, snapshot: Snapshot, why: StateDamaged) -> None:
        """The file is too damaged to be written: another takes its place, with this snapshot. It stays beside it, for whoever
        wants to know."""
        db, self._db = self._db, None
        try:
            with _told(self.path):
                if db is not None:
                    db.close()
                if Path(f"{self.path}-wal").exists():  # it would be read into the new file
                    raise why
                aside = Path(f"{self.path}.damaged")
                aside.unlink(missing_ok=True)
                os.link(self.path, aside)
                _build(fresh := _fresh(self.path), snapshot)
                fresh.replace(self.path)
                _sync(self.path.parent)
        except StateError as exc:
            raise StateNotSaved(f"{exc} (damaged: {why})") from exc

    def _lock_out_others(self) -> None:
        """Without a node there are no incarnations: a lock, which the kernel frees with its process, keeps a second one out.

        On a file of its own: closing any descriptor of the database's would free the locks that SQLite has on it."""
        if self._lock is not None:
            return
        with _told(self.path):
            descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise StateUnreachable(f"{self.path} is in use by another process of this agent") from None
        self._lock = descriptor


def _create(path: Path) -> None:
    """All of it or nothing: a file that is there and empty is then certainly damaged, and not the beginning of a first life."""
    for suffix in ("-wal", "-shm"):  # of a database that was taken away: not to be read into another
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    _build(fresh := _fresh(path))
    with suppress(FileExistsError):  # another process of this agent was first
        os.link(fresh, path)
    fresh.unlink()
    _sync(path.parent)


def _fresh(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.new")


def _build(fresh: Path, snapshot: Snapshot | None = None) -> None:
    """A database of its own, in one file: its log is written into it when it is closed."""
    for suffix in ("-wal", "-shm", ""):
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(fresh, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=OFF")  # once, when all of it is there
        db.execute("BEGIN")
        for statement in _SCHEMA:
            db.execute(statement)
        if snapshot is not None:
            db.execute("UPDATE lease SET incarnation = ?", (snapshot.incarnation,))
            db.execute(f"INSERT INTO snapshot_{snapshot.place} VALUES (?, ?, ?, ?, ?, ?)", _row(snapshot))  # noqa: S608
        db.execute("COMMIT")
    finally:
        db.close()
    _sync(fresh)


def _sync(path: Path) -> None:
    """It, or what is in it, outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite and the system say, as ours."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        raise (StateDamaged if code in _DAMAGE else StateUnreachable)(f"{path}: {exc}") from exc
    except UnicodeDecodeError as exc:  # sqlite3's own: a broken schema is quoted in the message of its error
        raise StateDamaged(f"{path}: its schema is not readable") from exc
    except OSError as exc:
        raise StateUnreachable(f"{path}: {exc.strerror or exc}") from exc


def _row(snapshot: Snapshot) -> tuple[Any, ...]:
    return (
        snapshot.number, snapshot.version, snapshot.incarnation, snapshot.saved_s, snapshot.checksum, snapshot.data,
    )  # fmt: skip


def _read(db: sqlite3.Connection, table: str) -> list[Snapshot]:
    """The newest, or none."""
    # each column by name: a damaged schema may have others
    query = f"SELECT {_COLUMNS} FROM {table} ORDER BY number DESC LIMIT 1"  # noqa: S608 - names of ours
    return [_snapshot(*row) for row in db.execute(query)]


def _snapshot(number: Any, version: Any, incarnation: Any, saved_s: Any, checksum: Any, data: Any) -> Snapshot:
    """Of a row, whose values may be of any type if it is damaged: then its checksum does not fit."""
    is_row = all(isinstance(it, int) for it in (number, version, incarnation)) and isinstance(saved_s, float)
    if not (is_row and isinstance(checksum, bytes) and isinstance(data, bytes)):
        raise StateDamaged("a row with values of wrong types")
    return Snapshot(
        number=number, version=version, incarnation=incarnation, saved_s=saved_s, data=data, checksum=checksum
    )
