from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydantic
import pytest

from agents.analytics import Event, EventStore, Period

NOW = datetime(2032, 3, 1, 0, 30, tzinfo=UTC)  # a Monday, just after a leap day
LONG_AGO, FAR_AHEAD = NOW - timedelta(days=1000), NOW + timedelta(days=1000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    store = EventStore(tmp_path / "events.db")
    yield store
    store.close()


def starts(store: EventStore, period: Period) -> list[tuple[str, int]]:
    return [(f"{usage.start:%m-%d %H}", usage.events) for usage in store.usage(period, LONG_AGO, FAR_AHEAD)]


@pytest.mark.parametrize(
    ("period", "wanted"),
    [
        ("hour", [("02-29 00", 1), ("02-29 23", 1), ("03-01 00", 2)]),
        ("day", [("02-29 00", 2), ("03-01 00", 2)]),
        ("week", [("02-23 00", 2), ("03-01 00", 2)]),
        ("month", [("02-01 00", 2), ("03-01 00", 2)]),
    ],
)
def test_usage_counts_by_utc_periods_and_weeks_begin_on_monday(
    store: EventStore, period: Period, wanted: list[tuple[str, int]]
) -> None:
    sunday = NOW.replace(month=2, day=29)
    store.record([Event(name="seen", at=at) for at in (sunday, sunday.replace(hour=23), NOW)], NOW)
    store.record([Event(name="seen")], NOW)  # without a time of its own: now
    assert starts(store, period) == wanted


def test_usage_tells_errors_users_and_mean_duration_per_name(store: EventStore) -> None:
    events = [
        Event(name="search", user="ann", duration_ms=10),
        Event(name="search", user="ann", duration_ms=30, error="timeout"),
        Event(name="search", user="bob"),
        Event(name="login"),
    ]
    store.record(events, NOW)
    login, search = store.usage("day", LONG_AGO, FAR_AHEAD)
    assert (login.name, login.events, login.users, login.mean_ms) == ("login", 1, 0, None)
    assert (search.events, search.errors, search.users, search.mean_ms) == (3, 1, 2, 20.0)
    assert [usage.name for usage in store.usage("day", LONG_AGO, FAR_AHEAD, "search")] == ["search"]


def test_the_start_of_a_range_is_in_it_and_the_end_is_not(store: EventStore) -> None:
    store.record([Event(name="x", at=NOW), Event(name="x", at=NOW + timedelta(hours=1))], NOW)
    (only,) = store.usage("hour", NOW, NOW + timedelta(hours=1))
    assert only.start == NOW.replace(minute=0)


def test_equal_errors_are_counted_together_the_most_frequent_first(store: EventStore) -> None:
    store.record(
        [Event(name="search", source="web", error="timeout", at=NOW + timedelta(hours=n)) for n in range(3)], NOW
    )
    store.record([Event(name="login", error="no such user"), Event(name="login")], NOW)
    first, second = store.errors(LONG_AGO, limit=10)
    assert (first.error, first.count, first.first, first.last) == ("timeout", 3, NOW, NOW + timedelta(hours=2))
    assert (second.name, second.count) == ("login", 1)
    assert store.errors(LONG_AGO, limit=1) == [first]
    assert store.errors(NOW + timedelta(hours=3), limit=10) == []


def test_many_events_are_recorded_all_or_not_at_all(store: EventStore) -> None:
    good, bad = (
        Event(name="x"),
        Event.model_construct(name=None, source="", user=None, duration_ms=None, error=None, at=None),
    )
    with pytest.raises(Exception, match="NOT NULL"):
        store.record([good, bad], NOW)
    assert store.usage("day", LONG_AGO, FAR_AHEAD) == []


def test_old_events_are_forgotten_and_counted(store: EventStore) -> None:
    store.record([Event(name="old", at=NOW - timedelta(days=2)), Event(name="new", at=NOW)], NOW)
    assert store.forget(NOW - timedelta(days=1)) == 1
    assert [usage.name for usage in store.usage("day", LONG_AGO, FAR_AHEAD)] == ["new"]


def test_an_event_needs_a_name() -> None:
    with pytest.raises(pydantic.ValidationError):
        Event(name="")
