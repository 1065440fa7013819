"""How fast events are delivered: one publisher, 50 subscribers in 5 processes, ours beside raw pyzmq and NATS.

    python benchmarks/bench_events.py [--quick] [--json] [--only TEXT]...

A round is a number of events published as fast as the publisher can; it ends when every subscriber has the last of them, and
the next begins then, so that nobody measures how much it throws away. Rounds of one event show how long one takes to reach all 50.
The contenders stand in event_peers.py; all of them are up all the time (an idle one sleeps), and take turns.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common import Options, Processes, Table, cpu_s, free_ports, median, options, percentile, say, show
from event_peers import CONTENDERS, SIZE, WARM_UP

PEERS_SCRIPT: Final = Path(__file__).with_name("event_peers.py")
RAW: Final = "pyzmq PUSH/PUB/SUB"
SUBSCRIBERS: Final = 50
PROCESSES: Final = 5
#: Events of a round: fewer than the shortest queue of any contender on the way to a subscriber.
ROUND: Final = 2_000
READY_S: Final = 30.0
ROUND_S: Final = 60.0


@dataclass(slots=True)
class Running:
    """A contender that is up, and its rounds so far: seconds, lost events, CPU seconds of publisher, server, subscribers."""

    name: str
    server: subprocess.Popen[str]
    publisher: subprocess.Popen[str]
    subscribers: list[subprocess.Popen[str]]
    unread: dict[int, bytearray] = field(default_factory=dict)  #: by pid: what has come of the next lines
    number: int = WARM_UP
    seconds: list[float] = field(default_factory=list)
    single_s: list[float] = field(default_factory=list)
    lost: int = 0
    cpu: list[tuple[float, float, float]] = field(default_factory=list)

    def ask(self, round: int, events: int) -> None:
        assert self.publisher.stdin
        self.publisher.stdin.write(f"{round} {events}\n")
        self.publisher.stdin.flush()

    def wait(self, round: int, timeout_s: float) -> int | None:
        """Until all processes have `round`: how many events they received in it; None when one does not say so in time."""
        ends_s = time.monotonic() + timeout_s
        received = 0
        for process in self.subscribers:
            while (line := self._next_line(process, ends_s)) is not None:
                said, count = map(int, line.split())
                if said == round:
                    received += count
                    break
            else:
                return None
        return received

    def _next_line(self, process: subprocess.Popen[str], ends_s: float) -> bytes | None:
        """What a subscriber says next. Read past the pipe's own buffer, in which `select` sees nothing."""
        assert process.stdout
        unread = self.unread.setdefault(process.pid, bytearray())
        while b"\n" not in unread:
            if not select.select([process.stdout], [], [], max(0.0, ends_s - time.monotonic()))[0]:
                return None
            data = os.read(process.stdout.fileno(), 65_536)
            if not data:
                raise RuntimeError(f"{self.name}: a subscriber exited with {process.wait()}")
            unread += data
        line, _, rest = bytes(unread).partition(b"\n")
        unread[:] = rest
        return line

    def warm_up(self) -> None:
        """Until every subscriber hears the publisher."""
        ends_s = time.monotonic() + READY_S
        while True:
            self.ask(WARM_UP, 1)
            if self.wait(WARM_UP, 0.2) is not None:
                return
            if time.monotonic() > ends_s:
                raise RuntimeError(f"{self.name}: its subscribers hear nothing")

    def used_s(self) -> tuple[float, float, float]:
        return cpu_s(self.publisher.pid), cpu_s(self.server.pid), sum(cpu_s(one.pid) for one in self.subscribers)

    def round(self, events: int) -> float:
        self.number += 1
        begun_s = time.perf_counter()
        self.ask(self.number, events)
        received = self.wait(self.number, ROUND_S)
        seconds = time.perf_counter() - begun_s
        if received is None:
            raise RuntimeError(f"{self.name}: round {self.number} of {events} events did not end within {ROUND_S:g} s")
        self.lost += events * SUBSCRIBERS - received
        return seconds

    def many(self) -> None:
        before = self.used_s()
        self.seconds.append(self.round(ROUND))
        publisher, server, subscribers = (now - then for now, then in zip(self.used_s(), before, strict=True))
        self.cpu.append((publisher, server, subscribers))

    def cpu_us(self) -> list[float]:
        """Per delivered event: publisher, server, subscribers."""
        return [sum(part) / len(self.cpu) / ROUND / SUBSCRIBERS * 1e6 for part in zip(*self.cpu, strict=True)]


def start(processes: Processes, wanted: Options, folder: Path) -> tuple[list[Running], list[str]]:
    """Those that came up, and a sentence for each that did not."""
    running, absent = [], []
    for number, name in enumerate(CONTENDERS):
        if wanted.only and name != RAW and not any(part in name for part in wanted.only):
            continue
        place = folder / str(number)
        place.mkdir()
        try:
            contender = _start(processes, name, place)
            contender.warm_up()
        except (RuntimeError, OSError) as exc:
            absent.append(f"{name} could not be measured: {exc}")
            say(absent[-1])
        else:
            running.append(contender)
            say(f"{name}: up")
    return running, absent


def _start(processes: Processes, name: str, place: Path) -> Running:
    def process(*words: object, **pipes: int) -> subprocess.Popen[str]:
        return processes.start(sys.executable, PEERS_SCRIPT, name, *words, text=True, **pipes)

    if CONTENDERS[name].is_served:
        server = process("serve", place)
    else:
        found = shutil.which("nats-server", path="/usr/sbin:/usr/local/bin:/usr/bin")
        if found is None:
            raise RuntimeError("there is no nats-server; install Debian's package of that name")
        (port,) = free_ports(1)
        (place / "port").write_text(str(port))
        server = processes.start(found, "-a", "127.0.0.1", "-p", port, text=True)
        _until_listening(port)
    each = SUBSCRIBERS // PROCESSES
    subscribers = [process("subscribe", place, each, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
    publisher = process("publish", place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert publisher.stdout
    assert publisher.stderr
    if publisher.stdout.readline().strip() != "ready":
        lines = publisher.stderr.read().strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"its publisher exited with {publisher.wait()}")
    return Running(name, server, publisher, subscribers)


def _until_listening(port: int) -> None:
    import socket

    ends_s = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(0.05)
        else:
            return


def measure(running: list[Running], *, quick: bool) -> None:
    repetitions, singles = (2, 20) if quick else (12, 200)
    for repetition in range(repetitions):
        say(f"repetition {repetition + 1} of {repetitions}")
        for contender in running:
            contender.many()
            contender.single_s += [contender.round(1) for _ in range(singles // repetitions)]


def table(running: list[Running], absent: list[str]) -> Table:
    raw = next(contender for contender in running if contender.name == RAW)
    raw_s = median(raw.seconds)
    result = Table(
        f"{SIZE} bytes, 1 publisher, {SUBSCRIBERS} subscribers in {PROCESSES} processes",
        (
            "contender", "delivered/s", "rate / raw", "lost", "one to all, p50 ms", "p99 ms",
            "publisher CPU us/delivery", "server CPU us", "subscribers CPU us",
        ),
        notes=absent,
    )  # fmt: skip
    for contender in running:
        seconds = median(contender.seconds)
        result.add(
            contender.name,
            ROUND * SUBSCRIBERS / seconds,
            raw_s / seconds,
            contender.lost,
            percentile(contender.single_s, 50) * 1000,
            percentile(contender.single_s, 99) * 1000,
            *contender.cpu_us(),
        )
    return result


def main() -> None:
    wanted = options(__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="akb") as folder, Processes() as processes:
        running, absent = start(processes, wanted, Path(folder))
        measure(running, quick=wanted.quick)
        result = table(running, absent)
    show("bench_events", [result], as_json=wanted.json)


if __name__ == "__main__":
    main()
