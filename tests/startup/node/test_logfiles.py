from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from startup.node import linux
from startup.node.logfiles import rotate_if_large

WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
for n in range(int(sys.argv[2])):
    os.write(fd, b"line %d %s\\n" % (n, b"x" * (n % 200)))
"""


def lines_of(path: Path) -> list[str]:
    parts = [path.with_name(f"{path.name}.{n}") for n in range(30, 0, -1)]
    text = "".join(part.read_text() for part in (*parts, path) if part.exists())
    return [line.split()[1] for line in text.splitlines() if line.strip()]


@pytest.fixture(params=["collapsed", "truncated"])
def log(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log on a file system that can cut blocks off a file's front, and on one that can't."""
    if request.param == "truncated":
        monkeypatch.setattr(linux, "collapse", lambda fd, length: False)
    else:
        with open(tmp_path / "try", "wb+") as file:
            file.write(bytes(100_000))
            file.flush()
            if not linux.collapse(file.fileno(), os.fstat(file.fileno()).st_blksize):
                pytest.skip("this file system can't collapse ranges")
    return tmp_path / "a.log"


def test_small_log_is_left_alone(log: Path) -> None:
    log.write_text("x" * 100)
    assert not rotate_if_large(log, max_bytes=100)
    assert not rotate_if_large(log.with_name("absent.log"))
    assert os.listdir(log.parent) == [name for name in os.listdir(log.parent) if name in ("a.log", "try")]


def test_whole_lines_move_and_the_appending_process_goes_on_in_the_same_file(log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        for n in range(5000):
            os.write(fd, b"line %d\n" % n)
        assert rotate_if_large(log, max_bytes=1000)
        os.write(fd, b"line 5000\n")
        assert log.stat().st_size < 10_000
        assert log.read_text().endswith("line 5000\n")
        older = log.with_name("a.log.1")
        assert all(line.startswith("line ") for line in older.read_text().splitlines())
        assert all(line.startswith("line ") for line in log.read_text().splitlines() if line.strip())
        assert lines_of(log) == [str(n) for n in range(5001)]
        assert older.stat().st_mode & 0o777 == 0o600
    finally:
        os.close(fd)


def test_so_many_are_kept_and_the_oldest_goes(log: Path) -> None:
    for n in range(8):
        log.write_text(f"round {n}\n" * 10_000)
        assert rotate_if_large(log, max_bytes=10, keep=5)
        log.write_text("")
    kept = sorted(name for name in os.listdir(log.parent) if name.startswith("a.log."))
    assert kept == [f"a.log.{n}" for n in range(1, 6)]
    assert [log.with_name(name).read_text()[:7] for name in kept] == [f"round {n}" for n in (7, 6, 5, 4, 3)]


@pytest.mark.process
def test_nothing_is_lost_while_a_process_writes_all_the_time(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with open(log, "wb") as file:
        file.write(bytes(100_000))
        file.flush()
        if not linux.collapse(file.fileno(), os.fstat(file.fileno()).st_blksize):
            pytest.skip("this file system can't collapse ranges")
    log.unlink()
    count = 60_000
    with subprocess.Popen([sys.executable, "-c", WRITER, str(log), str(count)]) as writer:
        rotations = 0
        while writer.poll() is None:
            rotations += rotate_if_large(log, max_bytes=500_000, keep=30)
    assert rotations >= 5
    assert lines_of(log) == [str(n) for n in range(count)]


def test_log_that_can_not_be_copied_is_cut_all_the_same(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x" * 10_000)
    (tmp_path / "a.log.1").mkdir()
    assert rotate_if_large(log, max_bytes=10, keep=1)
    assert log.stat().st_size == 0
