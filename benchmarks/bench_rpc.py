"""How long a call takes: an echo between two processes of one machine, ours beside raw pyzmq and the peers.

    python benchmarks/bench_rpc.py [--quick] [--json] [--only TEXT]...

Three jobs: 64 bytes one call after another, 64 bytes with 256 calls in flight, 1 MB one call after another. Then what a good
caller notices of garbage beside it (rpc_hostile.py), and where the microseconds of our call go, layer by layer. The
contenders stand in rpc_peers.py; nothing but their own library is between them and the socket. All of them are up all the
time (an idle one sleeps), and take turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from common import Options, Processes, Table, cpu_s, free_ports, median, options, percentile, say, show
from rpc_hostile import hostile
from rpc_layers import layers
from rpc_peers import CONTENDERS, WINDOW, Job, Sheet

PEERS_SCRIPT: Final = Path(__file__).with_name("rpc_peers.py")
RAW_SEQUENTIAL: Final = "pyzmq REQ/REP"
RAW_WINDOWED: Final = "pyzmq DEALER/ROUTER"
OURS: Final = "agentkit"
SMALL_BYTES: Final = 64
LARGE_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class Running:
    """A contender that is up, and what it did so far: job -> its sheets, and the CPU that its two processes took per call."""

    name: str
    server: subprocess.Popen[str]
    client: subprocess.Popen[str]
    sheets: dict[str, list[Sheet]] = field(default_factory=dict)
    cpu_us: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def run(self, title: str, job: Job) -> None:
        assert self.client.stdin
        assert self.client.stdout
        before = cpu_s(self.client.pid), cpu_s(self.server.pid)
        self.client.stdin.write(json.dumps(asdict(job)) + "\n")
        self.client.stdin.flush()
        answer = self.client.stdout.readline()
        if not answer:
            said = self.client.stderr.read().strip() if self.client.stderr else ""
            raise RuntimeError(f"{self.name}: its client exited with {self.client.wait()}: {said}")
        after = cpu_s(self.client.pid), cpu_s(self.server.pid)
        sheet = Sheet(**json.loads(answer))
        self.sheets.setdefault(title, []).append(sheet)
        caller_us, agent_us = ((now - then) / sheet.calls * 1e6 for now, then in zip(after, before, strict=True))
        self.cpu_us.setdefault(title, []).append((caller_us, agent_us))

    def cpu(self, title: str) -> tuple[float, float]:
        """Microseconds per call: the caller's process, the called one's."""
        callers, agents = zip(*self.cpu_us[title], strict=True)
        return median(callers), median(agents)

    def calls_per_second(self, title: str) -> float:
        return median([sheet.calls / sheet.seconds for sheet in self.sheets[title]])

    def latency_us(self, title: str, percent: float) -> float:
        return median([percentile(sheet.latencies_us, percent) for sheet in self.sheets[title]])


def start(processes: Processes, wanted: Options) -> tuple[list[Running], list[str]]:
    """Those that came up, and a sentence for each that did not."""
    running, absent = [], []
    ports = free_ports(2 * len(CONTENDERS))  # two each: some serve large payloads apart
    for port, (name, contender) in zip(ports[::2], CONTENDERS.items(), strict=True):
        if wanted.only and name not in (RAW_SEQUENTIAL, RAW_WINDOWED) and not any(part in name for part in wanted.only):
            continue
        server = processes.start(sys.executable, PEERS_SCRIPT, name, "serve", port, stderr=subprocess.PIPE, text=True)
        client = processes.start(
            sys.executable, PEERS_SCRIPT, name, "call", port,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert client.stdout
        if client.stdout.readline().strip() == "ready":
            running.append(Running(name, server, client))
            say(f"{name}: up")
        else:
            failed = server if server.poll() is not None else client
            said = failed.stderr.read() if failed.stderr else ""
            lines = said.strip().splitlines() or [f"exit {failed.poll()}"]
            absent.append(f"{contender.__name__} ({name}) could not be measured: {lines[-1]}")
            say(absent[-1])
    return running, absent


def measure(running: list[Running], *, quick: bool) -> None:
    repetitions, seconds = (3, 0.2) if quick else (9, 1.0)
    jobs = {
        "sequential": Job(size=SMALL_BYTES, seconds=seconds, windowed=False),
        "windowed": Job(size=SMALL_BYTES, seconds=seconds, windowed=True),
        "large": Job(size=LARGE_BYTES, seconds=seconds, windowed=False),
    }
    for repetition in range(repetitions):
        say(f"repetition {repetition + 1} of {repetitions}")
        for title, job in jobs.items():
            for contender in running:
                kind = CONTENDERS[contender.name]
                if kind.windowed >= job.windowed and (kind.large or title != "large"):
                    contender.run(title, job)


def tables(running: list[Running], absent: list[str]) -> list[Table]:
    by_name = {contender.name: contender for contender in running}

    def of(title: str) -> list[Running]:
        return [contender for contender in running if title in contender.sheets]

    raw_us = by_name[RAW_SEQUENTIAL].latency_us("sequential", 50)
    sequential = Table(
        f"{SMALL_BYTES} bytes, one call after another",
        ("contender", "p50 us", "p99 us", "calls/s", "time / raw REQ/REP", "caller CPU us/call", "callee CPU us/call"),
        notes=absent,
    )
    for c in of("sequential"):
        p50 = c.latency_us("sequential", 50)
        rate, p99 = c.calls_per_second("sequential"), c.latency_us("sequential", 99)
        sequential.add(c.name, p50, p99, rate, p50 / raw_us, *c.cpu("sequential"))

    raw_rate = by_name[RAW_WINDOWED].calls_per_second("windowed")
    windowed = Table(
        f"{SMALL_BYTES} bytes, {WINDOW} calls in flight",
        ("contender", "calls/s", "rate / raw DEALER/ROUTER", "caller CPU us/call", "callee CPU us/call"),
    )
    for c in of("windowed"):
        windowed.add(
            c.name, c.calls_per_second("windowed"), c.calls_per_second("windowed") / raw_rate, *c.cpu("windowed")
        )

    raw_large_us = by_name[RAW_SEQUENTIAL].latency_us("large", 50)
    large = Table("1 MB, one call after another", ("contender", "p50 ms", "MB/s each way", "time / raw REQ/REP"))
    for c in of("large"):
        p50 = c.latency_us("large", 50)
        large.add(c.name, p50 / 1000, c.calls_per_second("large") * LARGE_BYTES / 1e6, p50 / raw_large_us)
    return [sequential, windowed, large]


def main() -> None:
    wanted = options(__doc__ or "")
    with Processes() as processes:
        running, absent = start(processes, wanted)
        measure(running, quick=wanted.quick)
        result = tables(running, absent)
        ours = next((contender for contender in running if contender.name == OURS), None)
        totals_us = dict(zip(("caller", "callee"), ours.cpu("windowed"), strict=True)) if ours else {}
    with Processes() as processes:  # alone: the others' processes have ended
        result.append(hostile(processes, quick=wanted.quick))
    show("bench_rpc", [*result, layers(totals_us, quick=wanted.quick)], as_json=wanted.json)


if __name__ == "__main__":
    main()
