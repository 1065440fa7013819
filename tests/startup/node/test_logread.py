"""Log files in bounded pieces, also while they are rotated."""

from __future__ import annotations

from pathlib import Path

import pytest

from startup.node import logfiles, logread


def test_what_came_after_the_last_lines_is_told_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\ntwo\nthr")
    piece = logread.last(path, 2, 1000)
    assert piece == (["two", "thr"], 8, False)
    with path.open("a") as file:
        file.write("ee\nfour\nfi")
    assert logread.after(path, piece.cursor, 1000) == (["three", "four"], 19, False)


def test_a_line_longer_than_a_piece_comes_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("x" * 25 + "\nend\n")
    cursor, lines, more = 0, [], True
    while more:
        piece = logread.after(path, cursor, 10)
        lines, cursor, more = [*lines, *piece.lines], piece.cursor, piece.more
    assert lines == ["x" * 10, "x" * 10, "x" * 5, "end"]
    assert logread.last(path, 2, 10).lines == ["end"]
    assert logread.last(path, 2, 10).more
    path.write_text("x" * 25)
    assert logread.last(path, 2, 10).lines == ["x" * 10]


@pytest.mark.parametrize("cut", [0, 1000])
def test_nothing_is_lost_or_told_twice_when_a_log_is_rotated_between_two_questions(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.log"
    lines = [f"line {n:06}" for n in range(3000)]
    path.write_text("".join(f"{line}\n" for line in lines))
    cursor = sum(len(line) + 1 for line in lines[: len(lines) - cut])
    assert logfiles.rotate_if_large(path, max_bytes=1000)
    with path.open("a") as file:
        file.write("after\n")
    told: list[str] = []
    more = True
    while more:
        piece = logread.after(path, cursor, 4000)
        told, cursor, more = [*told, *piece.lines], piece.cursor, piece.more
    shown = [line for line in told if line.strip()]  # the rotation may leave a blank line where it cut one
    assert shown[-1] == "after"
    assert shown[-1 - cut : -1] == (lines[-cut:] if cut else [])


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert logread.last(tmp_path / "a.log", 5, 100) == ([], 0, False)
    assert logread.after(tmp_path / "a.log", 12, 100) == ([], 0, False)
