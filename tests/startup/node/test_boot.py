from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from startup.node import launch, procinfo
from startup.node.boot import EXIT_ALREADY_RUNS, EXIT_UNFIT
from startup.node.options import BootOptions, parse
from tests.startup.node.booted import NODES
from tests.startup.node.conftest import PATIENCE_S, REPOSITORY


class Booted:
    """Boots machines below a folder, with the few lines of booted.py for a node; ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.options = BootOptions(
            cluster="c", machines=("m",), run_root=str(folder / "r"), state_root=str(folder / "s")
        )
        self.machines: set[str] = set()

    def boot(
        self, *machines: str, input: bytes = b"", more: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        self.machines.update(machines)
        argv = BootOptions(
            cluster="c" if machines else "",
            machines=machines,
            run_root=self.options.run_root,
            state_root=self.options.state_root,
        ).to_argv()
        return subprocess.run(
            [sys.executable, "-m", "tests.startup.node.booted", *argv, *more],
            cwd=REPOSITORY,
            input=input,
            capture_output=True,
            timeout=PATIENCE_S,
        )

    def nodes(self, machine: str, count: int) -> list[dict[str, Any]]:
        """The first `count` nodes of the machine, waited for."""
        path = self.options.node(machine).places.run / NODES
        return until(lambda: (found := _lines(path)) and len(found) >= count and found)

    def log(self, machine: str) -> str:
        return Path(self.options.node(machine).node_log).read_text()

    def close(self) -> None:
        for machine in self.machines:
            node = _lines(self.options.node(machine).places.run / NODES)
            for found in node[-1:]:
                if is_alive(found["pid"]):
                    os.kill(found["pid"], signal.SIGTERM)
                until(lambda found=found: not is_alive(found["pid"]) and not is_alive(found["zygote"]))


def until(found: Callable[[], Any]) -> Any:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        if result := found():
            return result
        time.sleep(0.01)
    raise AssertionError("waited too long")


def is_alive(pid: int) -> bool:
    found = procinfo.stat(pid)
    return found is not None and found.is_alive


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def booted(run_folder: Path) -> Iterator[Booted]:
    booted = Booted(run_folder)
    yield booted
    booted.close()


pytestmark = pytest.mark.process


def test_one_boot_gives_each_machine_a_node_and_a_zygote_in_sessions_of_their_own(booted: Booted) -> None:
    done = booted.boot("m", "n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    nodes = [booted.nodes(machine, 1)[0] for machine in ("m", "n")]
    pids = [node[name] for node in nodes for name in ("pid", "zygote")]
    assert len(set(pids)) == 4
    assert [os.getsid(pid) for pid in pids] == pids
    for node in nodes:
        zygote = procinfo.stat(node["zygote"])
        assert zygote is not None
        assert zygote.ppid == node["pid"]
        assert node["session"] == node["pid"]
    assert procinfo.command(nodes[0]["zygote"]) == "agentkit: zygote c/m"


def test_second_boot_says_that_a_node_runs_and_disturbs_nothing(booted: Booted) -> None:
    booted.boot("m")
    first = booted.nodes("m", 1)[0]
    done = booted.boot("m")
    assert done.returncode == EXIT_ALREADY_RUNS
    assert f"a node of c/m runs already (pid {first['pid']})".encode() in done.stderr
    assert is_alive(first["pid"])
    assert is_alive(first["zygote"])


def test_machine_whose_folder_is_unfit_is_told_and_the_others_are_booted(booted: Booted, run_folder: Path) -> None:
    (run_folder / "s" / "c").mkdir(parents=True)
    (run_folder / "s" / "c" / "n").write_text("no folder")
    done = booted.boot("m", "n")
    assert done.returncode == EXIT_UNFIT
    assert b"no folder" in done.stderr
    assert is_alive(booted.nodes("m", 1)[0]["pid"])


def test_order_on_standard_input_is_read_after_the_imports(booted: Booted) -> None:
    booted.machines.add("m")
    order = json.dumps({"cluster": "c", "machines": ["m"], "file": "/f.yaml"}).encode()
    assert booted.boot(input=order, more=("--from-stdin",)).returncode == 0
    assert is_alive(booted.nodes("m", 1)[0]["pid"])
    assert booted.boot(more=("--from-stdin",)).returncode == 0  # no order after all


def test_zygote_starts_a_new_node_when_the_node_is_killed_and_again(booted: Booted) -> None:
    booted.boot("m")
    first = booted.nodes("m", 1)[0]
    os.kill(first["pid"], signal.SIGKILL)
    second = booted.nodes("m", 2)[1]
    assert second["zygote"] == first["zygote"]
    assert second["pid"] != first["pid"]
    assert second["session"] == second["pid"]
    assert [fd for fd in second["fds"] if fd < 3] == [0, 1, 2]
    assert len(second["fds"]) <= len(first["fds"])  # nothing of the zygote's
    os.kill(second["pid"], signal.SIGKILL)
    third = booted.nodes("m", 3)[2]
    assert third["zygote"] == first["zygote"]
    assert "the node is gone; starting the next one in 0.2 s" in booted.log("m")
    assert "the node is gone; starting the next one in 0.4 s" in booted.log("m")


def test_supervised_zygote_waits_for_somebody_to_start_the_node(booted: Booted) -> None:
    booted.boot("m", more=("--supervised",))
    first = booted.nodes("m", 1)[0]
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: "its supervisor starts the next one" in booted.log("m"))
    assert booted.boot("m", more=("--supervised",)).returncode == 0
    second = booted.nodes("m", 2)[1]
    assert second["zygote"] == first["zygote"]


def test_node_and_zygote_end_when_the_node_is_told_to(booted: Booted) -> None:
    booted.boot("m")
    node = booted.nodes("m", 1)[0]
    os.kill(node["pid"], signal.SIGTERM)
    until(lambda: not is_alive(node["pid"]) and not is_alive(node["zygote"]))
    assert booted.boot("m").returncode == 0  # and another can begin
    assert is_alive(booted.nodes("m", 2)[1]["pid"])


def test_zygote_of_a_removed_run_directory_starts_no_node_and_ends(booted: Booted, run_folder: Path) -> None:
    booted.boot("m")
    node = booted.nodes("m", 1)[0]
    (run_folder / "r").rename(run_folder / "gone")
    os.kill(node["pid"], signal.SIGKILL)
    until(lambda: not is_alive(node["zygote"]))


def test_zygote_whose_starter_dies_before_it_connects_ends(booted: Booted) -> None:
    """A node that can't even start must not be started again for ever."""
    options = booted.options.node("m")
    options.places.prepare()
    code = (
        "import os, sys; from startup.node import boot\n"
        "def node(options): os._exit(3)\n"
        "sys.exit(boot.main(sys.argv[1:], node_main=node, modules=()))"
    )
    argv = [*booted.options.to_argv(), "--foreground"]
    assert subprocess.run([sys.executable, "-c", code, *argv], cwd=REPOSITORY, timeout=PATIENCE_S).returncode == 3
    until(lambda: not launch.zygote_answers(options.places.zygote))


def test_soft_limit_is_raised_for_the_zygote_as_far_as_the_hard_one_allows(booted: Booted) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        booted.boot("m")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    zygote = booted.nodes("m", 1)[0]["zygote"]
    assert resource.prlimit(zygote, resource.RLIMIT_NOFILE)[0] == min(8192, hard)


def test_options_survive_their_command_line() -> None:
    options = BootOptions(
        cluster="c",
        machines=("m",),
        run_root="/r",
        state_root="/s",
        file="/f",
        preload=("a", "b"),
        supervised=True,
        nofile=512,
    )
    assert parse(options.to_argv()) == options
    zygote = options.node("m").zygote(("a",), listener_fd=7, resume_fd=8)
    assert parse(zygote.to_argv()) == zygote
    assert zygote.node("m") == options.node("m")


@pytest.mark.parametrize(
    "argv", [[], ["--cluster", "c"], ["--cluster", "c", "--machine", "a", "--machine", "b", "--foreground"]]
)
def test_incomplete_command_line_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err
