from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from agentkit import NotFound
from agents.task_manager import Status, Task, TaskStore

NOW = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TaskStore]:
    store = TaskStore(tmp_path / "tasks.db")
    yield store
    store.close()


def add(
    store: TaskStore, title: str, priority: int = 3, tags: tuple[str, ...] = (), due: datetime | None = None
) -> Task:
    return store.add(title, "", priority, tags, due, NOW)


def test_a_new_task_is_open_and_can_be_read_again(store: TaskStore) -> None:
    task = store.add("Water the plants", "all of them", 4, ("home",), NOW + timedelta(days=1), NOW)
    assert (task.status, task.priority, task.tags, task.created) == (Status.OPEN, 4, ("home",), NOW)
    assert store.get(task.id) == task


def test_tasks_survive_closing_and_opening_the_file(tmp_path: Path) -> None:
    first = TaskStore(tmp_path / "tasks.db")
    task = add(first, "Stay")
    first.close()
    second = TaskStore(tmp_path / "tasks.db")
    assert second.get(task.id) == task
    second.close()


def test_unknown_ids_are_not_found_and_named(store: TaskStore) -> None:
    for use in (store.get, store.remove, lambda unknown: store.change(unknown, {"title": "x"}, NOW)):
        with pytest.raises(NotFound, match="no task 7") as caught:
            use(7)
        assert caught.value.details == {"id": 7}


def test_the_id_of_a_deleted_task_is_not_given_again(store: TaskStore) -> None:
    first = add(store, "Gone")
    store.remove(first.id)
    assert add(store, "New").id > first.id


def test_a_change_touches_only_what_it_names(store: TaskStore) -> None:
    task = store.add("Paint", "the fence", 2, ("home",), NOW, NOW)
    later = NOW + timedelta(minutes=1)
    changed = store.change(task.id, {"priority": 5, "due": None}, later)
    assert changed == task.model_copy(update={"priority": 5, "due": None, "updated": later})


def test_completion_time_is_set_once_and_cleared_when_the_task_is_opened_again(store: TaskStore) -> None:
    id = add(store, "Twice").id
    done = NOW + timedelta(hours=1)
    assert store.change(id, {"status": Status.DONE}, done).completed == done
    assert store.change(id, {"status": Status.DONE}, done + timedelta(hours=1)).completed == done
    assert store.change(id, {"status": Status.OPEN}, done).completed is None


@pytest.mark.parametrize(
    ("filters", "titles"),
    [
        ({}, ["urgent", "late", "plain"]),
        ({"status": Status.DONE}, ["plain"]),
        ({"tag": "work"}, ["urgent", "late"]),
        ({"tag": "wor"}, []),
        ({"text": "LATE"}, ["late"]),
        ({"min_priority": 4}, ["urgent"]),
        ({"due_before": NOW}, ["late"]),
        ({"tag": "work", "text": "urg"}, ["urgent"]),
    ],
)
def test_filters_narrow_the_list_and_combine(store: TaskStore, filters: dict[str, object], titles: list[str]) -> None:
    store.change(add(store, "plain", 2).id, {"status": Status.DONE}, NOW)
    add(store, "late", 3, ("work",), NOW - timedelta(days=1))
    add(store, "urgent", 5, ("work", "home"), NOW + timedelta(days=1))
    page = store.page(filters)
    assert [task.title for task in page.tasks] == titles
    assert page.total == len(titles)


def test_pages_follow_one_another_without_gap_or_repetition(store: TaskStore) -> None:
    ids = [add(store, f"task {n}").id for n in range(7)]
    seen: list[int] = []
    offset: int | None = 0
    while offset is not None:
        page = store.page({}, limit=3, offset=offset)
        seen += [task.id for task in page.tasks]
        offset = page.next_offset
    assert seen == ids
    assert store.page({}, offset=100).next_offset is None


def test_orders_by_urgency_age_and_due_time(store: TaskStore) -> None:
    never, soon, later = (
        add(store, "never", 1),
        add(store, "soon", 5, due=NOW),
        add(store, "later", 3, due=NOW + timedelta(1)),
    )
    assert [task.id for task in store.page({}, "urgency").tasks] == [soon.id, later.id, never.id]
    assert [task.id for task in store.page({}, "newest").tasks] == [later.id, soon.id, never.id]
    assert [task.id for task in store.page({}, "due").tasks] == [soon.id, later.id, never.id]


def test_due_times_of_other_zones_and_of_none_compare_as_utc(store: TaskStore) -> None:
    berlin = add(store, "zone", due=datetime(2030, 5, 17, 13, 30, tzinfo=timezone(timedelta(hours=2))))
    naive = add(store, "naive", due=datetime(2030, 5, 17, 11, 45))
    assert berlin.due == NOW - timedelta(minutes=30)
    assert naive.due == NOW - timedelta(minutes=15)
    assert store.page({"due_before": NOW}).total == 2


def test_stats_count_by_status_overdue_and_duration(store: TaskStore) -> None:
    assert store.stats(NOW).mean_completion_s is None
    store.change(
        add(store, "done", due=NOW - timedelta(days=1)).id, {"status": Status.DONE}, NOW + timedelta(seconds=90)
    )
    add(store, "late", due=NOW - timedelta(days=1))
    add(store, "early", due=NOW + timedelta(days=1))
    stats = store.stats(NOW)
    assert (stats.total, stats.overdue, stats.mean_completion_s) == (3, 1, pytest.approx(90))
    assert stats.by_status == {Status.OPEN: 2, Status.STARTED: 0, Status.DONE: 1}


def test_eight_threads_at_once_lose_nothing(store: TaskStore) -> None:
    threads = [threading.Thread(target=lambda: [add(store, "x") for _ in range(25)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.stats(NOW).total == 200
