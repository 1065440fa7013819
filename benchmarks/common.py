"""What the benchmarks share: tables, percentiles, memory and wake-ups of processes, and ending what a benchmark started.

Every benchmark has the same options: `--quick` (a short form, same shape), `--json` (one document on stdout, the progress
on stderr). Every number of ours stands beside one measured in the same run on the same machine; repetitions of all
contenders are interleaved, and the median is what is printed, so that a slow minute hurts everybody alike.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import ctypes
import json
import math
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

ROOT: Final = Path(__file__).resolve().parents[1]

#: Ports for servers of a benchmark: above what services use, below where Linux takes the ports of outgoing connections.
PORTS: Final = range(20_000, 32_000)

_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37


# --- options and output -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    quick: bool
    json: bool
    only: tuple[str, ...]  #: parts of contenders' names; empty: all


def options(description: str) -> Options:
    """The command line of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a short form: the same table, less to be trusted")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="only contenders whose name holds this"
    )
    given = parser.parse_args()
    return Options(quick=given.quick, json=given.json, only=tuple(given.only))


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass(slots=True)
class Table:
    """A titled table; also what `--json` prints, as a list of objects. Cells are None where there is nothing to say."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(cells)

    def __str__(self) -> str:
        texts = [[_cell(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True)))
            for row in texts
        ]  # fmt: skip
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(
            [f"## {self.title}", "", *(line.rstrip() for line in lines), *(f"  {note}" for note in self.notes)]
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "notes": self.notes,
        }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def show(name: str, tables: Sequence[Table], *, as_json: bool) -> None:
    """Print the result of one benchmark with the machine that it was measured on."""
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_1m": round(os.getloadavg()[0], 2),
    }
    if as_json:
        print(
            json.dumps(
                {"benchmark": name, "machine": machine, "tables": [table.as_json() for table in tables]}, indent=1
            )
        )
        return
    print(f"# {name}: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    for table in tables:
        print(f"\n{table}")


def compile_all() -> None:
    """Write the bytecode of the checkout and of everything that is installed beside it.

    What pip installs is compiled and a fresh checkout is not, nor is anything where PYTHONDONTWRITEBYTECODE is set: then each start of
    each contender would compile all that it imports (plain `python` processes took 4.4 s instead of 1.5 s)."""
    for folder in (
        *(ROOT / name for name in ("agentkit", "startup", "agents", "benchmarks")),
        sysconfig.get_path("purelib"),
    ):
        compileall.compile_dir(folder, quiet=2)


# --- numbers ----------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed; ValueError when there are none."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]


median = statistics.median


# --- processes --------------------------------------------------------------------------------------------------------


def pss_mb(pid: int) -> float:
    """Proportional set size: private memory, and of each shared page this process's part. What a fleet costs is its sum."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def cpu_s(pid: int) -> float:
    """CPU time that a process has taken, all its threads, in seconds (the kernel counts in steps of 10 ms)."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def wakeups(pid: int) -> int:
    """How often the threads of a process have gone to sleep by themselves since they began."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    count += int(line.split()[1])
    return count


def wakeups_per_second(pids: Sequence[int], seconds: float) -> list[float]:
    """For each process, over the next `seconds`."""
    before = [wakeups(pid) for pid in pids]
    begun_s = time.monotonic()
    time.sleep(seconds)
    passed_s = time.monotonic() - begun_s
    return [(wakeups(pid) - count) / passed_s for pid, count in zip(pids, before, strict=True)]


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now, and that no outgoing connection will take."""
    found: list[int] = []
    for port in PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"only {len(found)} free ports between {PORTS.start} and {PORTS.stop}")


class Processes:
    """Starts processes and ends them with all their descendants when the block is left, however it is left.

    Meanwhile this process is a child subreaper, so that what a daemon leaves behind becomes its child and is ended too. Nothing
    else is touched: what ran before the block began is remembered and spared, with whatever it starts."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._was_subreaper = ctypes.c_int()
        self._spared: set[psutil.Process] = set()
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Processes:
        self._libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(self._was_subreaper), 0, 0, 0)
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._spared = set(psutil.Process().children(recursive=True))
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.end()
        finally:
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, self._was_subreaper.value, 0, 0, 0)

    def start(self, *argv: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
        """A process whose output nobody reads, unless `options` (those of Popen) say otherwise."""
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL, **options}
        process = subprocess.Popen([str(part) for part in argv], env={**os.environ, **(env or {})}, **options)
        self._started.append(process)
        return process

    def end(self, grace_s: float = 5.0) -> None:
        """SIGTERM to all that runs, SIGKILL to what is left after `grace_s`; returns when nothing is."""
        for sig, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            told: set[psutil.Process] = set()
            deadline_s = time.monotonic() + wait_s
            while (running := self._running()) and time.monotonic() < deadline_s:
                for process in set(running) - told:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(sig)
                told.update(running)
                time.sleep(0.02)
        for child in self._started:
            child.poll()  # so that it knows that it was reaped
        if left := self._running():
            raise RuntimeError(f"still running: {[process.pid for process in left]}")

    def _running(self) -> list[psutil.Process]:
        self._reap()
        running = []
        spared = {process.pid for process in self._spared}
        for process in psutil.Process().children(recursive=True):  # parents before their children
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended between being listed and being asked
                if process in self._spared or process.ppid() in spared:
                    spared.add(process.pid)  # what a fleet beside this one has started meanwhile
                elif process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
        return running

    def _reap(self) -> None:
        """Adopted orphans are ours to wait for; Popen objects notice that their child was reaped."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the block began, by calling what it gives."""
    begun_s = time.perf_counter()
    yield lambda: time.perf_counter() - begun_s
