from __future__ import annotations

from pathlib import Path

import pytest

from startup.cli.tail import Follower
from startup.node.logread import last_lines


@pytest.mark.parametrize("number", [0, 1, 3, 5000, 20_000])
def test_the_last_lines_are_read_from_the_end_however_long_the_file_is(number: int, tmp_path: Path) -> None:
    lines = [f"line {n} é" for n in range(12_000)]
    (tmp_path / "a.log").write_text("\n".join(lines) + "\n")
    assert last_lines(tmp_path / "a.log", number) == (lines[-number:] if number else [])


def test_lines_rotated_away_come_before_those_of_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "a.log.1").write_text("one\ntwo\n")
    (tmp_path / "a.log").write_text("three\nno end")
    assert last_lines(tmp_path / "a.log", 3) == ["two", "three", "no end"]
    assert last_lines(tmp_path / "none.log", 3) == []


def test_a_follower_tells_whole_lines_only_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("before\n")
    follower = Follower(path)
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert list(follower.read()) == ["one"]
        file.write("o\nthree\n")
    assert list(follower.read()) == ["two", "three"]
    assert list(follower.read()) == []
    follower.close()


def test_a_follower_stays_with_a_log_that_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("")
    follower = Follower(path)
    path.write_text("old\n")
    path.rename(tmp_path / "a.log.1")
    assert list(follower.read()) == ["old"]
    path.write_text("new\n")
    assert list(follower.read()) == ["new"]
    follower.close()


def test_a_follower_begins_again_when_a_log_is_cut_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("a long line that was there\n")
    follower = Follower(path)
    path.write_text("cut\n")
    list(follower.read())
    with path.open("a") as file:
        file.write("more\n")
    assert "more" in list(follower.read())
    follower.close()


def test_a_log_that_is_not_there_yet_is_followed_from_its_beginning(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "a.log")
    assert list(follower.read()) == []
    (tmp_path / "a.log").write_text("first\n")
    assert list(follower.read()) == ["first"]
    follower.close()
