"""The file of errors: grouped, counted once, bounded, the same after a restart, and replaced when it is damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentkit.observe.reports import ErrorGroup, Severity
from startup.node.errors import store as error_store
from startup.node.errors.store import ErrorStore, Offered, Stored, StoreFailed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "errors.db"


@pytest.fixture
def store(path: Path) -> Iterator[ErrorStore]:
    store = ErrorStore(path)
    yield store
    store.close()


def group(
    message: str = "away", *, count: int = 1, severity: Severity = "error", at_s: float = 100.0, **facts: object
) -> ErrorGroup:
    keys = {"kind": "report", "where": message, "context": {}, "trace": "", **facts}
    return ErrorGroup(severity=severity, message=message, count=count, first_s=at_s, last_s=at_s, **keys)  # type: ignore[arg-type]


def offered(*groups: ErrorGroup, agent: str = "m/A", number: int = 1, source: str = "s" * 16) -> Offered:
    return Offered(agent=agent, incarnation=1, groups=groups, source=source, number=number)


def add(store: ErrorStore, *groups: ErrorGroup, agent: str = "m/A") -> list[Stored]:
    """The node's own word: nothing about it can be a repetition."""
    (stored,) = store.store([Offered(agent=agent, incarnation=1, groups=groups)])
    assert stored is not None
    return stored


def shown(store: ErrorStore, **options: object) -> dict[str, int]:
    """Message -> count, the latest first."""
    return {found["message"]: found["count"] for found in store.listed(**options)["groups"]}  # type: ignore[arg-type]


def test_alike_errors_are_added_up_and_the_worst_and_latest_is_shown(store: ErrorStore) -> None:
    add(store, group(count=3, at_s=50.0, context={"host": "a"}, trace="first"))
    add(store, group(count=4, at_s=90.0, severity="critical", context={"host": "b"}, trace="second"))
    (stored,) = add(store, group(count=1, at_s=80.0, severity="info"))
    assert (stored.total, stored.is_new, stored.is_reopened) == (8, False, False)
    (found,) = store.find(stored.id)
    assert (found["count"], found["severity"], found["first_s"], found["last_s"]) == (8, "critical", 50.0, 90.0)
    assert (found["context"], found["trace"]) == ({"host": "b"}, "first")


def test_a_batch_that_is_offered_again_is_not_counted_again_nor_after_a_restart(path: Path) -> None:
    first = ErrorStore(path)
    assert first.store([offered(group(count=5), number=1), offered(group(count=7), number=2)]) != [None, None]
    assert first.store([offered(group(count=7), number=2)]) == [None]
    first.close()
    second = ErrorStore(path)
    assert second.store([offered(group(count=7), number=2), offered(group(count=1), number=3)])[0] is None
    second.store([offered(group(count=10), number=1, source="t" * 16)])  # another life of the agent
    assert shown(second) == {"away": 5 + 7 + 1 + 10}
    second.close()


def test_a_resolved_error_is_hidden_until_it_happens_again_and_then_says_so(store: ErrorStore) -> None:
    (stored,) = add(store, group(severity="critical"))
    resolved = store.resolve(stored.id, "ops@here")
    assert resolved is not None
    assert (resolved["resolved_by"], resolved["resolved_s"] > 0) == ("ops@here", True)
    assert shown(store) == {}
    assert shown(store, resolved=True) == {"away": 1}
    (again,) = add(store, group(severity="warning"))
    assert again.is_reopened
    (found,) = store.find(stored.id)
    assert (found["resolved_s"], found["reopened"], found["count"], found["severity"]) == (None, 1, 2, "warning")


def test_what_is_unknown_can_not_be_resolved(store: ErrorStore) -> None:
    assert store.resolve("0" * 16, "ops") is None


def test_lists_are_chosen_by_agent_and_severity(store: ErrorStore) -> None:
    for agent, severity in (("m/A", "error"), ("m/A#1", "warning"), ("m/A_1", "critical"), ("m/AB1", "error")):
        add(store, group(agent, severity=severity), agent=agent)  # type: ignore[arg-type]
    assert set(shown(store, agent="A")) == set(shown(store, agent="m/A")) == {"m/A", "m/A#1"}
    assert set(shown(store, agent="A#1")) == set(shown(store, agent="m/A#1")) == {"m/A#1"}
    assert set(shown(store, agent="A_1")) == {"m/A_1"}
    assert set(shown(store, agent="%")) == set()
    assert set(shown(store, severity="error")) == {"m/A", "m/A_1", "m/AB1"}


def test_a_cursor_gives_only_what_changed_since(store: ErrorStore, path: Path) -> None:
    add(store, group("a"), group("b"))
    cursor = store.listed()["cursor"]
    assert shown(store, after=cursor) == {}
    add(store, group("a"))
    assert shown(store, after=cursor) == {"a": 2}
    store.close()
    path.unlink()
    add(store, group("c"))
    assert shown(store, after=cursor) == {"c": 1}, "a new file has a history of its own"


def test_the_store_stays_small_and_says_what_it_dropped(store: ErrorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_store, "MAX_GROUPS_OF_ONE", 5)
    monkeypatch.setattr(error_store, "MAX_GROUPS", 8)
    first = add(store, *(group(f"{n}", count=10) for n in range(5)))
    store.resolve(first[4].id, "ops")
    add(store, group("5"))
    assert set(shown(store, resolved=True)) == {"0", "1", "2", "3", "5"}, "the resolved one goes first"
    add(store, group("0"))
    add(store, group("6"))
    assert set(shown(store)) == {"0", "2", "3", "5", "6"}, "then what has not happened for longest"
    add(store, *(group(f"b{n}") for n in range(5)), agent="m/B")
    found = store.listed(limit=1000)
    assert len(found["groups"]) == 8
    assert found["notes"] == ["4 kinds of error with 40 reports were dropped to keep the store small"]


def test_a_thousand_kinds_from_every_agent_fit_the_bounds(store: ErrorStore, path: Path) -> None:
    for agent in range(12):
        store.store(
            [offered(*(group(f"{n} {batch}") for n in range(50)), agent=f"m/A{agent}", source=f"{agent:016}", number=batch + 1)
             for batch in range(20)]
        )  # fmt: skip
    found = store.listed(limit=1000)["groups"]
    assert len(found) <= 1000
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM groups").fetchone()[0] == error_store.MAX_GROUPS
    db.close()


@pytest.mark.parametrize("damage", [b"no database at all " * 300, None])
def test_a_damaged_file_is_moved_aside_and_said_so(path: Path, damage: bytes | None) -> None:
    store = ErrorStore(path)
    add(store, *(group(f"{n}", trace="x" * 4000) for n in range(50)))
    store.close()
    whole = path.read_bytes()
    # either no database, or one with a hole in the middle of its pages
    path.write_bytes(damage if damage is not None else whole[:4096] + b"\xff" * 60_000 + whole[64_096:])
    add(store, group("after"))
    assert shown(store) == {"after": 1}
    (note,) = store.listed()["notes"]
    (aside,) = path.parent.glob("errors.db.damaged-*[0-9]")
    assert str(aside) in note
    assert "damaged" in note
    store.close()


def test_a_file_of_another_version_is_moved_aside_too(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE groups (x)")
        db.execute("PRAGMA user_version=99")
    db.close()
    store = ErrorStore(path)
    add(store, group())
    assert shown(store) == {"away": 1}
    assert "format 99" in store.listed()["notes"][0]
    store.close()


def test_only_the_last_damaged_files_are_kept(path: Path) -> None:
    now_s = [1000.0]
    store = ErrorStore(path, wall_s=lambda: now_s[0])
    for _ in range(4):
        now_s[0] += 1
        path.write_bytes(b"no database at all " * 300)
        add(store, group())
        store.close()
    assert len(list(path.parent.glob("errors.db.damaged-*[0-9]"))) == error_store.MAX_DAMAGED


def test_a_folder_that_can_not_be_written_is_told_and_tried_again(path: Path) -> None:
    path.mkdir()
    store = ErrorStore(path)
    with pytest.raises(StoreFailed):
        add(store, group())
    path.rmdir()
    add(store, group())
    assert shown(store) == {"away": 1}
    assert path.stat().st_mode & 0o777 == 0o600
    store.close()


def test_an_id_is_found_by_its_beginning(store: ErrorStore) -> None:
    stored = add(store, *(group(f"{n}") for n in range(200)))
    for found in stored[:5]:
        assert [one["id"] for one in store.find(found.id)] == [found.id]
        assert found.id in [one["id"] for one in store.find(found.id[:4])]
    assert store.find("zzzz") == []
