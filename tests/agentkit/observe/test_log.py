"""Log lines: their shape, the two ways of writing them, and that nothing ever raises or is lost unseen."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError
from agentkit.observe import log


@pytest.fixture(autouse=True)
def _root_logger_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = tuple(root.handlers), root.level
    monkeypatch.setattr(log._handler, "dropped", 0)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Lines(io.StringIO):
    """A stream whose lines are read as JSON."""

    def taken(self) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.getvalue().splitlines()]
        self.seek(0)
        self.truncate()
        return found


@pytest.fixture
def lines() -> Lines:
    stream = Lines()
    log.configure(service="Summarizer", stream=stream)
    return stream


def test_a_line_has_the_agreed_fields_in_order(lines: Lines) -> None:
    log.get_logger("agents.x").info("hello", size=3)
    (line,) = lines.taken()
    assert list(line) == [
        *("timestamp", "level", "service", "logger", "message", "task_id", "duration_ms", "memory_used_mb", "size")
    ]
    assert (line["level"], line["service"], line["logger"]) == ("INFO", "Summarizer", "agents.x")
    assert (line["message"], line["task_id"], line["duration_ms"], line["size"]) == ("hello", None, None, 3)
    assert line["memory_used_mb"] > 1


def test_the_timestamp_is_utc_with_milliseconds(lines: Lines) -> None:
    record = logging.makeLogRecord({"msg": "x", "levelno": 20, "created": 1_700_000_000.0625})
    logging.getLogger().handle(record)
    assert lines.taken()[0]["timestamp"] == "2023-11-14T22:13:20.062Z"


def test_authors_write_as_with_the_standard_library(lines: Lines) -> None:
    logger = log.get_logger("a")
    logger.info("loaded %s in %d ms", "model", 12)
    logger.warning("100% done")
    logger.error("%(a)s", {"a": 1})
    logger.critical(ValueError("as the message"))  # type: ignore[arg-type]
    logger.log(logging.WARNING, "by number")
    logger.warn("old name")  # noqa: G010
    logger.info("extra", extra={"shard": 4})
    assert [(line["level"], line["message"]) for line in lines.taken()] == [
        ("INFO", "loaded model in 12 ms"),
        ("WARNING", "100% done"),
        ("ERROR", "1"),
        ("CRITICAL", "as the message"),
        ("WARNING", "by number"),
        ("WARNING", "old name"),
        ("INFO", "extra"),
    ]


def test_extra_becomes_fields_for_our_loggers_and_the_standard_ones(lines: Lines) -> None:
    log.get_logger("a").info("x", extra={"shard": 4})
    logging.getLogger("b").info("x", extra={"shard": 5})
    assert [line["shard"] for line in lines.taken()] == [4, 5]


def test_exception_holds_the_traceback_in_one_field(lines: Lines) -> None:
    try:
        raise KeyError("inside")
    except KeyError:
        log.get_logger("a").exception("failed on %s", "x")
    (line,) = lines.taken()
    assert line["message"] == "failed on x"
    assert line["level"] == "ERROR"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("KeyError: 'inside'")


@pytest.mark.parametrize("exc_info", [RuntimeError("told"), (RuntimeError, RuntimeError("told"), None)])
def test_exc_info_takes_an_exception_or_a_triple(lines: Lines, exc_info: Any) -> None:
    log.get_logger("a").error("x", exc_info=exc_info)
    assert lines.taken()[0]["exception"] == "RuntimeError: told"


def test_exc_info_without_an_exception_adds_nothing(lines: Lines) -> None:
    log.get_logger("a").exception("no exception is being handled")
    assert "exception" not in lines.taken()[0]


def test_other_libraries_come_out_as_the_same_lines(lines: Lines) -> None:
    logging.getLogger("third.party").warning("slow %s", "disk")
    structlog.get_logger("theirs").warning("odd", n=1)
    ours, theirs = lines.taken()
    assert (ours["logger"], ours["message"], ours["service"]) == ("third.party", "slow disk", "Summarizer")
    assert (theirs["message"], theirs["n"], theirs["service"]) == ("odd", 1, "Summarizer")


def test_warnings_of_python_come_out_as_the_same_lines() -> None:
    code = (
        "import warnings, sys; from agentkit.observe import log; log.configure(service='S', stream=sys.stdout); "
        "warnings.warn('old thing', FutureWarning)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(done.stdout)
    assert line["logger"] == "py.warnings"
    assert "FutureWarning: old thing" in line["message"]
    assert done.stderr == ""


def test_the_task_of_the_context_is_told_unless_the_caller_names_another(lines: Lines) -> None:
    token = log.handling.set("req-7")
    try:
        log.get_logger("a").info("x")
        log.get_logger("a").info("x", task_id="other", duration_ms=1.5)
    finally:
        log.handling.reset(token)
    log.get_logger("a").info("x")
    told = lines.taken()
    assert [line["task_id"] for line in told] == ["req-7", "other", None]
    assert told[1]["duration_ms"] == 1.5


def test_bound_fields_are_on_each_line_and_the_call_wins(lines: Lines) -> None:
    bound = log.get_logger("a").bind(peer="B", n=1)
    bound.info("x", n=2)
    (line,) = lines.taken()
    assert (line["peer"], line["n"]) == ("B", 2)


def test_a_field_can_not_take_the_place_of_ours(lines: Lines) -> None:
    log.get_logger("a").info("x", message="mine", level=9, service="s")
    (line,) = lines.taken()
    assert (line["message"], line["level"], line["service"]) == ("x", "INFO", "Summarizer")
    assert (line["message_"], line["level_"], line["service_"]) == ("mine", 9, "s")


def test_levels_are_obeyed_as_the_standard_library_does(lines: Lines) -> None:
    logger = log.get_logger("levels")
    logger.debug("hidden")
    logger.setLevel(logging.DEBUG)
    try:
        logger.debug("shown")
        assert logger.isEnabledFor(logging.DEBUG)
    finally:
        logger.setLevel(logging.NOTSET)
    assert [line["message"] for line in lines.taken()] == ["shown"]


def test_an_unknown_level_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="got 'LOUD', want DEBUG"):
        log.configure(service="S", level="loud".upper())


def test_configure_again_replaces_and_keeps_the_count(lines: Lines) -> None:
    lines.close()
    log.get_logger("a").info("lost")
    second = Lines()
    log.configure(service="S", stream=second)
    log.get_logger("a").info("x")
    assert len(second.taken()) == 1
    assert log.dropped_lines() == 1


def test_basic_config_before_us_does_not_print_every_line_twice() -> None:
    code = (
        "import logging, sys; logging.basicConfig(stream=sys.stdout); from agentkit.observe import log; "
        "log.configure(service='S', stream=sys.stdout); log.get_logger('a').error('once'); logging.error('once')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("once") == 2


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_what_can_not_be_rendered_is_told_as_well_as_possible(lines: Lines) -> None:
    circle: list[Any] = []
    circle.append(circle)
    logger = log.get_logger("a")
    logger.info("%d items", "three")
    logger.info("too few %s %s", 1)
    logger.info("fields", hostile=Hostile(), nan=float("nan"), circle=circle, keys={(1, 2): 3}, raw=b"\xff")
    logger.info(Hostile())  # type: ignore[arg-type]
    first, second, third, fourth = lines.taken()
    assert (first["message"], second["message"]) == ("%d items ('three',)", "too few %s %s (1,)")
    assert third["hostile"] == "<Hostile whose __str__ raised RuntimeError>"
    assert (third["nan"], third["circle"], third["keys"]) == ("nan", "[[...]]", "{(1, 2): 3}")
    assert fourth["message"] == "<Hostile whose __str__ raised RuntimeError>"
    assert log.dropped_lines() == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(
    message=st.text(st.characters()),
    fields=st.dictionaries(st.text(min_size=1), json_values, max_size=4),
    as_json=st.booleans(),
)
def test_anything_becomes_exactly_one_json_line_or_printable_text(
    message: str, fields: dict[str, Any], as_json: bool
) -> None:
    stream = io.StringIO(newline="")
    log.configure(service="S", fmt="json" if as_json else "text", stream=stream)
    log.get_logger("a").info("%s", message, extra=fields)
    written = stream.getvalue()
    assert written.endswith("\n")
    assert "\x1b" not in written
    if as_json:
        assert written.count("\n") == 1
        assert json.loads(written, parse_constant=pytest.fail)["message"] == message


def test_lone_surrogates_reach_a_file_as_json(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("a") as stream:
        log.configure(service="S", stream=stream)
        log.get_logger("a").info("name \udcff é")
    assert json.loads(path.read_bytes())["message"] == "name \udcff é"


def test_each_line_is_one_write_so_processes_share_a_file_without_mixing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = os.write
    monkeypatch.setattr(log.os, "write", lambda fd, data: (sizes.append(len(data)), write(fd, data))[1])
    with (tmp_path / "log").open("a") as stream:
        log.configure(service="S", stream=stream)
        log.get_logger("a").info("x" * 100_000)
        log.get_logger("a").info("y")
    assert len(sizes) == 2
    assert sum(sizes) == (tmp_path / "log").stat().st_size


def test_threads_never_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("a") as stream:
        log.configure(service="S", stream=stream)

        def write(n: int) -> None:
            for i in range(200):
                log.get_logger("a").info("line", n=n, i=i)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seen = [(line["n"], line["i"]) for line in map(json.loads, path.read_bytes().splitlines())]
    assert sorted(seen) == [(n, i) for n in range(8) for i in range(200)]


def test_a_full_disk_drops_and_counts_and_never_raises() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        log.configure(service="S", stream=full)
        for _ in range(3):
            log.get_logger("a").error("lost")
        logging.getLogger("b").error("lost")
    assert log.dropped_lines() == 4


def test_a_closed_stream_is_not_written_to_even_when_its_number_was_given_away(tmp_path: Path) -> None:
    stream = (tmp_path / "log").open("a")
    log.configure(service="S", stream=stream)
    number = stream.fileno()
    stream.close()
    with (tmp_path / "stranger").open("wb") as stranger:
        assert stranger.fileno() == number
        log.get_logger("a").error("not for you")
    assert (tmp_path / "stranger").read_bytes() == b""
    assert log.dropped_lines() == 1


def test_a_torn_line_does_not_spoil_the_next_one() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb", buffering=0) as end, open(writing, "wb", buffering=0) as stream:
        log.configure(service="S", stream=stream)
        logger = log.get_logger("a")
        logger.info("x" * 1_000_000)  # the pipe takes 64 KiB of it
        logger.info("nobody reads")
        assert log.dropped_lines() == 2
        os.set_blocking(reading, False)
        while end.read(1_000_000):
            pass
        logger.info("whole again")
        blank, line = end.read(65536).split(b"\n", 1)
    assert blank == b""
    assert json.loads(line)["message"] == "whole again"


def test_nobody_reading_the_pipe_any_more_is_survived() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as stream:
        log.configure(service="S", stream=stream)
        log.get_logger("a").error("x")
    assert log.dropped_lines() == 1


def test_text_is_one_short_line_with_fields_and_the_traceback_below() -> None:
    stream = io.StringIO()
    log.configure(service="S", fmt="text", stream=stream)
    log.get_logger("a").warning("peer.suspect", peer="A B", missed=3, empty="")
    try:
        raise ValueError("no")
    except ValueError:
        log.get_logger("a").exception("failed")
    first, second, *below = stream.getvalue().splitlines()
    assert first[12:] == " WARNING peer.suspect peer='A B' missed=3"
    assert second[12:] == " ERROR   failed"
    assert (below[0], below[-1]) == ("Traceback (most recent call last):", "ValueError: no")


def test_auto_is_text_with_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for colour in (True, False):
        master, slave = os.openpty()
        with open(master, "rb", buffering=0) as screen, open(slave, "w") as terminal:
            log.configure(service="S", stream=terminal)
            log.get_logger("a").warning("hello", n=1)
            seen = screen.read(1000)
        assert b"hello" in seen
        assert (b"\x1b[33m" in seen) is colour
        assert b"{" not in seen
        monkeypatch.setenv("NO_COLOR", "1")


def test_a_message_can_not_steer_the_terminal() -> None:
    stream = io.StringIO()
    log.configure(service="S", fmt="text", stream=stream)
    log.get_logger("a").info("\x1b[2J\x07gone", field="\x9b31m")
    assert stream.getvalue()[21:] == "\\x1b[2J\\x07gone field=\\x9b31m\n"


@pytest.mark.process
def test_loggers_made_before_a_fork_follow_what_the_child_configures(tmp_path: Path) -> None:
    code = """
import logging, os, sys
from agentkit.observe import log
logger = log.get_logger("made.early")
logger.info("bind", x=1)
for name in ("A", "B"):
    if not (pid := os.fork()):
        log.configure(service=name, stream=open(name, "a"))
        logger.info("hello")
        logging.getLogger("third").info("hello")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
assert not logging.getLogger().handlers
"""
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    for name in ("A", "B"):
        told = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [(line["service"], line["message"]) for line in told] == [(name, "hello")] * 2


@pytest.mark.process
def test_the_import_does_not_bring_rich_and_does_not_stand_in_its_way() -> None:
    code = "import sys; from agentkit.observe import log; print('rich' in sys.modules); import rich.console"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
