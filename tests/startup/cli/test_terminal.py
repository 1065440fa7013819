"""What commands do on a terminal: a pseudo-terminal of 100 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from tests.startup.cli.launched import PATIENCE_S, Launched

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def fleet() -> Iterator[Launched]:
    with Launched() as launched:
        yield launched


class Terminal:
    """A command with a terminal for all three; what it writes is kept in `text`."""

    def __init__(self, fleet: Launched, *words: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = {key: value for key, value in fleet.environment.items() if key != "COLUMNS"} | {"TERM": "xterm"}
        command = [sys.executable, "-m", "startup", *words]
        self.process = subprocess.Popen(
            command, cwd=fleet.folder, env=environment, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.text = ""

    def read_until(self, done: Callable[[str], bool]) -> None:
        """Until `done(text)`, or the command has ended."""
        ends_s = time.monotonic() + PATIENCE_S
        while not done(self.text):
            assert time.monotonic() < ends_s, self.text
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # nobody has the other side open any more
                    break
                if not data:
                    break
                self.text += data.decode()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> int:
        self.read_until(lambda _: False)
        os.close(self._master)
        return self.process.wait(PATIENCE_S)


def test_up_paints_a_board_with_a_bar_and_leaves_only_its_summary(fleet: Launched) -> None:
    slow = {"agent": "fleet_agents:Slow", "config": {"until": str(fleet.folder / "go")}}
    fleet.write({"Base": {}, "Slow": slow, "Top": {"dependencies": ["Slow"]}})
    terminal = Terminal(fleet, "up", "fleet.yaml")
    terminal.read_until(lambda text: "1/3 ready" in text and "waiting" in text)
    (fleet.folder / "go").touch()
    assert terminal.close() == 0
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.text)
    assert "█" in shown
    assert "GROUP" in shown
    assert "1 for Slow" in shown
    cursor_off, cursor_on = terminal.text.index("\x1b[?25l"), terminal.text.rindex("\x1b[?25h")
    assert cursor_off < cursor_on
    assert "3 agents ready in" in terminal.text[cursor_on:]
    assert max(map(len, shown.replace("\r", "\n").splitlines())) <= 100


def test_ctrl_c_on_the_terminal_ends_the_board_and_says_how_to_go_on(fleet: Launched) -> None:
    fleet.write({"Slow": {"agent": "fleet_agents:Slow", "config": {"until": str(fleet.folder / "go")}}})
    terminal = Terminal(fleet, "up", "fleet.yaml")
    terminal.read_until(lambda text: "starting" in text)
    terminal.process.send_signal(2)
    assert terminal.close() == 130
    assert "the nodes carry on" in terminal.text[terminal.text.rindex("\x1b[?25h") :]


def test_apply_asks_and_takes_yes_for_an_answer_and_nothing_else(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fleet.up()
    fleet.write({"Base": {"config": {"words": "bye"}}})
    for answer, code, words in (("n", 1, "hello"), ("y", 0, "bye")):
        terminal = Terminal(fleet, "apply", "fleet.yaml")
        terminal.read_until(lambda text: "apply this? [y/N]" in text)
        assert "config.words" in terminal.text
        terminal.type(f"{answer}\n")
        assert terminal.close() == code, terminal.text
        assert f"started with {words}" in fleet.run("logs", "Base", "-n", "2").out
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.text)
    assert "revision 2: 1 changed" in shown
    assert max(map(len, shown.replace("\r", "\n").splitlines())) <= 100


def test_status_watch_repaints_until_ctrl_c(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fleet.up()
    terminal = Terminal(fleet, "status", "--watch")
    terminal.read_until(lambda text: text.count("cluster c: ") >= 2)
    terminal.process.send_signal(2)
    assert terminal.close() == 130
    assert "\x1b[?25h" in terminal.text


def test_down_counts_on_a_terminal(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fleet.up()
    terminal = Terminal(fleet, "down")
    assert terminal.close() == 0
    assert "c is down: 1 agent on 1 machine" in terminal.text


def test_top_takes_the_whole_screen_sorts_by_key_and_gives_the_terminal_back(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fleet.up()
    terminal = Terminal(fleet, "top", "-d", "0.2s")
    terminal.read_until(lambda text: "Base" in text and "by cpu" in text)
    assert terminal.text.index("\x1b[?1049h") < terminal.text.index("cluster c: ")
    terminal.type("m")
    terminal.read_until(lambda text: "by memory" in text)
    terminal.type("q")
    assert terminal.close() == 0
    assert "\x1b[?1049l" in terminal.text
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", terminal.text)
    assert max(map(len, shown.replace("\r", "\n").splitlines())) < 100


def test_top_without_a_terminal_prints_one_frame_or_one_document(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fleet.up()
    frame = fleet.run("top", "-d", "0.1s")
    assert (frame.code, "\x1b" in frame.out) == (0, False)
    assert frame.out.splitlines()[-1].split()[:2] == ["Base", "ready"]
    told = fleet.run("top", "--json", "-d", "0.1s").json
    (agent,) = told["agents"]
    assert agent["cpu_percent"] >= 0
    assert agent["memory_mb"] > 1
    (machine,) = told["machines"]
    assert machine["node"]["cpu"] >= 0
    assert machine["zygote"]["memory_mb"] > 1
