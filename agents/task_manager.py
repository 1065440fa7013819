"""TaskManager: a to-do list that other agents and people share, kept in SQLite.

A model of an agent around blocking storage: `TaskStore` knows SQL and nothing about agents, `TaskManager` knows calls
and nothing about SQL. Its handlers are plain `def`, so each runs on a worker thread and may wait for the disk.

What happens to a task is published as task.created, task.updated, task.completed and task.deleted.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from agentkit import AgentConfig, BaseAgent, Event, NotFound, health_check, rpc

#: AUTOINCREMENT: the id of a deleted task is never given again.
SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL, description TEXT NOT NULL, status TEXT NOT NULL, priority INTEGER NOT NULL, tags TEXT NOT NULL,
    due TEXT, created TEXT NOT NULL, updated TEXT NOT NULL, completed TEXT
);
CREATE INDEX IF NOT EXISTS tasks_by_status ON tasks (status, priority DESC, id);
"""

Order = Literal["urgency", "newest", "due"]

#: What the orders and filters of `TaskManager.list` mean in SQL. Tasks without a due time come after those with one.
ORDERS: dict[Order, str] = {"urgency": "priority DESC, id", "newest": "id DESC", "due": "due IS NULL, due, id"}
FILTERS = {
    "status": "status = :status",
    "tag": "EXISTS (SELECT 1 FROM json_each(tags) WHERE value = :tag)",
    "text": "instr(lower(title || char(10) || description), lower(:text))",
    "min_priority": "priority >= :min_priority",
    "due_before": "due < :due_before",
}


class Status(StrEnum):
    OPEN = "open"
    STARTED = "started"
    DONE = "done"


Title = Annotated[str, Field(min_length=1, max_length=200)]
Priority = Annotated[int, Field(ge=1, le=5, description="1 can wait, 5 is urgent")]
Tags = tuple[Annotated[str, Field(min_length=1, max_length=50)], ...]


class Task(BaseModel):
    id: int
    title: str
    description: str
    status: Status
    priority: int
    tags: Tags
    due: datetime | None
    created: datetime
    updated: datetime
    completed: datetime | None


class TaskChanges(TypedDict, total=False):
    """What `update` may set: any of these and nothing else. `due` may be set to None."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    title: Title
    description: str
    status: Status
    priority: Priority
    tags: Tags
    due: datetime | None


class TaskPage(BaseModel):
    tasks: tuple[Task, ...]
    total: int = Field(description="how many fit the filters, on all pages")
    next_offset: int | None = Field(description="where the next page begins; None: this is the last")


class TaskStats(BaseModel):
    total: int
    by_status: dict[Status, int]
    overdue: int
    mean_completion_s: float | None = Field(description="from created to completed, over all completed tasks")


class TaskEvent(Event):
    """What all events of tasks tell."""

    id: int
    title: str
    priority: int
    tags: Tags


class TaskCreated(TaskEvent, topic="task.created"):
    due: datetime | None


class TaskUpdated(TaskEvent, topic="task.updated"):
    status: Status
    changed: tuple[str, ...] = Field(description="the fields that were set")


class TaskCompleted(TaskEvent, topic="task.completed"):
    took_s: float = Field(description="from created to completed")


class TaskDeleted(Event, topic="task.deleted"):
    id: int


class TaskStore:
    """The tasks of one database file. Safe to use from several threads; whoever opens it closes it.

    One connection behind a lock: SQLite lets one writer in at a time anyway, and a connection per worker thread would
    have to be closed on that thread. Methods with an `id` raise NotFound for one that does not exist."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last tasks, never the file
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def get(self, id: int) -> Task:
        with self._lock:
            row = self._db.execute("SELECT * FROM tasks WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise _unknown(id)
        return _task(row)

    def add(self, title: str, description: str, priority: int, tags: Tags, due: datetime | None, now: datetime) -> Task:
        with self._lock, self._db as db:
            row = db.execute(
                "INSERT INTO tasks (title, description, status, priority, tags, due, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING *",
                (title, description, Status.OPEN, priority, _column(tags), _column(due), _column(now), _column(now)),
            ).fetchone()
        return _task(row)

    def change(self, id: int, changes: TaskChanges, now: datetime) -> Task:
        """Set what is named in `changes`; the completion time follows the status."""
        return self.change_from(id, changes, now)[1]

    def change_from(self, id: int, changes: TaskChanges, now: datetime) -> tuple[Task, Task]:
        """The same; the task before and after, with nothing in between."""
        with self._lock, self._db as db:
            before = self.get(id)
            columns: dict[str, Any] = {**changes, "updated": now}
            if changes.get("status", before.status) is not before.status:
                columns["completed"] = now if changes["status"] is Status.DONE else None
            row = db.execute(
                f"UPDATE tasks SET {', '.join(f'{name} = ?' for name in columns)} WHERE id = ? RETURNING *",  # noqa: S608
                (*map(_column, columns.values()), id),
            ).fetchone()
        return before, _task(row)

    def remove(self, id: int) -> None:
        with self._lock, self._db as db:
            if not db.execute("DELETE FROM tasks WHERE id = ?", (id,)).rowcount:
                raise _unknown(id)

    def page(self, filters: dict[str, Any], order: Order = "urgency", limit: int = 50, offset: int = 0) -> TaskPage:
        """The tasks that fit all of `filters` (keys of FILTERS; None: any will do)."""
        used = {name: _column(value) for name, value in filters.items() if value is not None}
        selection = f"FROM tasks WHERE {' AND '.join(FILTERS[name] for name in used) or '1'}"
        with self._lock:
            (total,) = self._db.execute(f"SELECT count(*) {selection}", used).fetchone()
            rows = self._db.execute(
                f"SELECT * {selection} ORDER BY {ORDERS[order]} LIMIT :limit OFFSET :offset",
                {**used, "limit": limit, "offset": offset},
            ).fetchall()
        end = offset + len(rows)
        return TaskPage(tasks=tuple(map(_task, rows)), total=total, next_offset=end if rows and end < total else None)

    def stats(self, now: datetime) -> TaskStats:
        with self._lock:
            by_status = dict(self._db.execute("SELECT status, count(*) FROM tasks GROUP BY status").fetchall())
            overdue, mean_s = self._db.execute(
                "SELECT coalesce(sum(completed IS NULL AND due < ?), 0),"
                " round(avg((julianday(completed) - julianday(created)) * 86400), 3) FROM tasks",
                (_column(now),),
            ).fetchone()
        return TaskStats(
            total=sum(by_status.values()),
            by_status={status: by_status.get(status, 0) for status in Status},
            overdue=overdue,
            mean_completion_s=mean_s,
        )


def _column(value: Any) -> Any:
    """`value` as SQLite keeps it. Times are UTC text of one width, so that they compare; one without a zone is UTC."""
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC).isoformat(timespec="milliseconds")
    return json.dumps(value) if isinstance(value, tuple) else value


def _task(row: sqlite3.Row) -> Task:
    return Task.model_validate({**dict(row), "tags": json.loads(row["tags"])})


def _unknown(id: int) -> NotFound:
    return NotFound(f"no task {id}", details={"id": id})


class TaskManager(BaseAgent):
    """Tasks: create, read, list, change, complete, delete, count."""

    class Config(AgentConfig):
        db_path: Path = Path("tasks.db")  #: relative to the agent's data directory

    config: Config

    async def on_start(self) -> None:
        self.store = TaskStore(self.data_dir / self.config.db_path)

    async def on_stop(self) -> None:
        self.store.close()

    @rpc
    def create(
        self, title: Title, description: str = "", priority: Priority = 3, tags: Tags = (), due: datetime | None = None
    ) -> Task:
        """Add a task; it is open until it is completed."""
        task = self.store.add(title, description, priority, tags, due, datetime.now(UTC))
        self.blocking.publish("task.created", {**_told(task), "due": task.due})
        return task

    @rpc(idempotent=True)
    def get(self, id: int) -> Task:
        """One task. `not_found`: it never was, or is deleted."""
        return self.store.get(id)

    @rpc(idempotent=True)
    def list(
        self,
        status: Status | None = None,
        tag: str | None = None,
        text: str | None = None,
        min_priority: Priority | None = None,
        due_before: datetime | None = None,
        order: Order = "urgency",
        limit: Annotated[int, Field(ge=1, le=500)] = 50,
        offset: Annotated[int, Field(ge=0)] = 0,
    ) -> TaskPage:
        """The tasks that fit all filters given, a page at a time. `text` is looked for in title and description."""
        filters = {"status": status, "tag": tag, "text": text, "min_priority": min_priority, "due_before": due_before}
        return self.store.page(filters, order, limit, offset)

    @rpc(idempotent=True)
    def update(self, id: int, changes: TaskChanges) -> Task:
        """Change what is given and leave the rest."""
        return self._change(id, changes)

    @rpc(idempotent=True)
    def complete(self, id: int) -> Task:
        """Mark a task done; one that is done already keeps its time."""
        return self._change(id, {"status": Status.DONE})

    @rpc
    def delete(self, id: int) -> None:
        """Forget a task for good."""
        self.store.remove(id)
        self.blocking.publish("task.deleted", TaskDeleted(id=id))

    @rpc(idempotent=True)
    def stats(self) -> TaskStats:
        """How many tasks there are, by status, and how long they take."""
        return self.store.stats(datetime.now(UTC))

    @health_check
    def database(self) -> None:
        """Fails when the database can't be read."""
        self.store.page({}, limit=1)

    def _change(self, id: int, changes: TaskChanges) -> Task:
        before, task = self.store.change_from(id, changes, datetime.now(UTC))
        self.blocking.publish("task.updated", {**_told(task), "status": task.status, "changed": tuple(changes)})
        if task.completed is not None and before.completed is None:
            took_s = (task.completed - task.created).total_seconds()
            self.blocking.publish("task.completed", {**_told(task), "took_s": took_s})
        return task


def _told(task: Task) -> dict[str, Any]:
    """The fields of TaskEvent."""
    return {"id": task.id, "title": task.title, "priority": task.priority, "tags": task.tags}


if __name__ == "__main__":
    TaskManager.main()
