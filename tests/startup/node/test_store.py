"""Revisions by compare-and-set, incarnations that never repeat, what processes were doing."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from startup.errors import Conflict, Refused
from startup.node import store
from startup.node.paths import Places
from startup.node.store import Incarnations, Remembered, Revisions, Unreadable
from tests.startup.plan.builders import agent, revision


@pytest.fixture
def places(tmp_path: Path) -> Places:
    places = Places("c", "m", tmp_path / "r" / "c" / "m", tmp_path / "s" / "c" / "m")
    places.prepare()
    return places


def test_a_revision_is_kept_over_restarts_just_as_it_was(places: Places) -> None:
    wanted = revision(agent("A"), agent("n/B", "A", optional=("A",), config={"x": [1, {"y": None}]}), stopped=("A",))
    revisions = Revisions(places)
    assert (revisions.current, revisions.number) == (None, 0)
    revisions.propose(0, wanted)
    again = Revisions(places)
    assert again.current == wanted
    assert again.current is not None
    assert again.current.digest() == wanted.digest()
    assert stat.S_IMODE((places.state / "revision.msgpack").stat().st_mode) == 0o600


def test_who_comes_second_is_told_who_was_first_and_when_by_this_machines_clock(places: Places) -> None:
    wall_s = 100.0
    revisions = Revisions(places, wall_s=lambda: wall_s)
    revisions.propose(0, replace(revision(agent("A"), number=7), author="ops@pc2", time_s=3700.0))
    wall_s = 103.0
    with pytest.raises(Conflict, match=r"^conflict: revision 7 by ops@pc2 3 s ago$") as failed:
        revisions.propose(6, revision(agent("A"), number=8))
    assert failed.value.details == {"number": 7}
    with pytest.raises(Conflict, match="has no revision"):
        Revisions(Places("c", "m", places.run, places.state / "none")).propose(3, revision(agent("A"), number=4))


def test_numbers_only_grow_and_versions_must_be_understood(places: Places) -> None:
    revisions = Revisions(places)
    revisions.propose(0, revision(agent("A"), number=3))
    with pytest.raises(Refused, match="does not follow"):
        revisions.propose(3, revision(agent("A"), number=3))
    with pytest.raises(Refused, match="control version") as failed:
        revisions.propose(3, replace(revision(agent("A"), number=4), control_version=99))
    assert failed.value.code == "control_version"


def test_the_last_revisions_are_kept_for_rollback(places: Places) -> None:
    revisions = Revisions(places)
    for number in range(1, store.REVISIONS_KEPT + 4):
        revisions.propose(number - 1, revision(agent("A"), number=number))
    assert revisions.earlier(1) is None
    kept = revisions.earlier(store.REVISIONS_KEPT)
    assert kept is not None
    assert kept.number == store.REVISIONS_KEPT
    assert len(list((places.state / "revisions").iterdir())) == store.REVISIONS_KEPT


def test_a_revision_that_cannot_be_read_is_named(places: Places) -> None:
    (places.state / "revision.msgpack").write_bytes(b"\x80")
    with pytest.raises(Unreadable, match=r"revision\.msgpack.*move it away"):
        Revisions(places)


def test_incarnations_never_repeat_whatever_crashes_in_between(places: Places) -> None:
    taken = []
    for _ in range(3):  # each a node that was killed
        incarnations = Incarnations(places, wall_s=lambda: 5.0)
        taken += [incarnations.take() for _ in range(5)]
    assert len(set(taken)) == 15
    assert taken == sorted(taken)
    assert taken[0] == 5000, "above what an earlier state directory may have given out"


def test_a_block_of_incarnations_is_one_write(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    monkeypatch.setattr(store, "write_atomically", lambda path, data: writes.append(data))
    incarnations = Incarnations(places, wall_s=lambda: 0.0)
    for _ in range(store.INCARNATIONS_PER_BLOCK + 1):
        incarnations.take()
    assert writes == [b"1001\n", b"2001\n"]


def test_a_counter_that_cannot_be_read_is_named(places: Places) -> None:
    (places.state / "counters").write_text("many")
    with pytest.raises(Unreadable, match="counters"):
        Incarnations(places)


def test_what_processes_did_is_remembered_within_one_boot_of_the_machine(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = Remembered(places)
    assert remembered.load() == {}
    remembered.begin({"m/A": {"pid": 1}, "m/B": {"pid": 2}})
    assert not remembered.change({"m/A": {"pid": 3}, "m/B": None, "m/C": {"pid": 4}})
    known = {"m/A": {"pid": 3}, "m/C": {"pid": 4}}
    assert Remembered(places).load() == known
    with open(places.state / "processes.changes", "ab") as file:
        file.write(b"\x92\xa3m/A\x81")  # the node died in the middle of a word
    assert Remembered(places).load() == known
    remembered.begin(known)
    assert Remembered(places).load() == known
    remembered.close()
    monkeypatch.setattr(store, "_boot_id", lambda: "another")
    assert Remembered(places).load() == {}
    (places.state / "processes.msgpack").write_bytes(b"\xc1")
    assert remembered.load() == {}


def test_what_the_state_directory_does_not_take_is_in_the_run_directory_until_it_does(places: Places) -> None:
    full = places.state / "counters"
    incarnations = Incarnations(places)
    first = incarnations.take()
    full.unlink()
    full.mkdir()  # nothing can be put in its place
    (full / "x").touch()
    for _ in range(store.INCARNATIONS_PER_BLOCK):
        last = incarnations.take()
    assert last > first
    (full / "x").unlink()
    full.rmdir()
    full.write_text(f"{first + 1}\n")
    assert Incarnations(places).take() > last

    remembered = Remembered(places)
    remembered.begin({"m/A": {"pid": 1}})
    snapshot = places.state / "processes.msgpack"
    snapshot.unlink()
    snapshot.mkdir()
    remembered.begin({"m/A": {"pid": 2}})
    assert str(places.state) in remembered.trouble
    remembered.change({"m/B": {"pid": 3}})
    assert Remembered(places).load() == {"m/A": {"pid": 2}, "m/B": {"pid": 3}}
    snapshot.rmdir()
    remembered.begin({"m/A": {"pid": 4}})
    assert remembered.trouble == ""
    assert Remembered(places).load() == {"m/A": {"pid": 4}}
    remembered.close()
