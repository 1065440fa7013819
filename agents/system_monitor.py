"""SystemMonitor: CPU, memory, disk and network of the machine it runs on, now and over a window of time.

A model of an agent with a timer: `take_reading` touches the machine, everything after it is arithmetic on values.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import BaseModel, Field

from agentkit import AgentConfig, BaseAgent, every, rpc

MB = 1024 * 1024

#: Rates over less than this, in seconds, say more about the reading itself than about the machine.
SHORTEST_S = 1.0

Percent = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the machine says at one moment; the counters only grow, so two readings make a rate."""

    at: datetime
    monotonic_s: float
    cpu_s: float  #: CPU time there was, over all cores, since the machine started
    cpu_idle_s: float  #: of that, unused
    memory_used_bytes: int
    memory_total_bytes: int
    load_1m: float
    disk_percent: dict[str, float]  #: path -> used
    network_in_bytes: int
    network_out_bytes: int


#: What all counters showed when the machine started.
MACHINE_START = Reading(
    at=datetime.fromtimestamp(0, UTC),
    monotonic_s=0.0,
    cpu_s=0.0,
    cpu_idle_s=0.0,
    memory_used_bytes=0,
    memory_total_bytes=0,
    load_1m=0.0,
    disk_percent={},
    network_in_bytes=0,
    network_out_bytes=0,
)


class Sample(BaseModel):
    """One point of the window. The rates are means since the point before it, of the first since the machine started."""

    at: datetime
    cpu_percent: float
    memory_percent: float
    memory_used_mb: float
    load_1m: float
    disk_percent: dict[str, float]
    network_in_kb_s: float
    network_out_kb_s: float


class Spread(BaseModel):
    """One measure over the window."""

    low: float
    mean: float
    p95: float
    high: float


class Summary(BaseModel):
    machine: str
    samples: int
    since: datetime
    now: Sample
    cpu_percent: Spread
    memory_percent: Spread
    warnings: list[str] = Field(description="what is above its limit now, in words")


def take_reading(disks: Sequence[Path]) -> Reading:
    """Ask the machine; under a millisecond."""
    cpu, memory = psutil.cpu_times(), psutil.virtual_memory()
    network = psutil.net_io_counters()  # None where there is no network at all
    return Reading(
        at=datetime.now(UTC),
        monotonic_s=time.monotonic(),
        # guest time is already part of user time
        cpu_s=sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0),
        cpu_idle_s=cpu.idle + getattr(cpu, "iowait", 0.0),
        memory_used_bytes=memory.total - memory.available,
        memory_total_bytes=memory.total,
        load_1m=os.getloadavg()[0],
        disk_percent={str(path): psutil.disk_usage(str(path)).percent for path in disks},
        network_in_bytes=network.bytes_recv if network else 0,
        network_out_bytes=network.bytes_sent if network else 0,
    )


def sample_between(before: Reading, now: Reading) -> Sample:
    """What happened from one reading to the next."""
    cpu_s = now.cpu_s - before.cpu_s
    busy_s = cpu_s - (now.cpu_idle_s - before.cpu_idle_s)
    passed_s = max(now.monotonic_s - before.monotonic_s, 0.001)
    return Sample(
        at=now.at,
        cpu_percent=round(100 * min(max(busy_s / cpu_s, 0.0), 1.0), 1) if cpu_s > 0 else 0.0,
        memory_percent=round(100 * now.memory_used_bytes / now.memory_total_bytes, 1),
        memory_used_mb=round(now.memory_used_bytes / MB, 1),
        load_1m=round(now.load_1m, 2),
        disk_percent=now.disk_percent,
        # a network card that went away takes its counts with it
        network_in_kb_s=round(max(now.network_in_bytes - before.network_in_bytes, 0) / 1024 / passed_s, 1),
        network_out_kb_s=round(max(now.network_out_bytes - before.network_out_bytes, 0) / 1024 / passed_s, 1),
    )


def spread(values: Sequence[float]) -> Spread:
    """`values` must not be empty."""
    ordered = sorted(values)
    return Spread(
        low=ordered[0],
        mean=round(statistics.fmean(ordered), 1),
        p95=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        high=ordered[-1],
    )


class SystemMonitor(BaseAgent):
    """Keeps a window of samples of its machine and tells about it."""

    class Config(AgentConfig):
        window: Annotated[int, Field(ge=2)] = 360  #: samples kept: an hour, at one every ten seconds
        disks: tuple[Path, ...] = (Path("/"),)  #: any path on each file system to watch
        cpu_warning_percent: Percent = 90
        memory_warning_percent: Percent = 90
        disk_warning_percent: Percent = 90

    config: Config

    async def on_start(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=self.config.window)
        self.last_reading = MACHINE_START
        self.sample()

    @every("10s", slows=False)
    async def sample_regularly(self) -> None:
        """One more point for the window; the oldest makes room."""
        self.sample()

    @rpc(idempotent=True)
    async def now(self) -> Sample:
        """How the machine fares: the newest sample, a new one if that is older than a second."""
        if time.monotonic() - self.last_reading.monotonic_s >= SHORTEST_S:
            self.sample()
        return self.samples[-1]

    @rpc(idempotent=True)
    async def history(self, last: Annotated[int, Field(ge=1)] = 60) -> list[Sample]:
        """The newest `last` samples of the window, oldest first."""
        return list(self.samples)[-last:]

    @rpc(idempotent=True)
    async def summary(self) -> Summary:
        """The whole window in a few numbers."""
        return Summary(
            machine=self.machine,
            samples=len(self.samples),
            since=self.samples[0].at,
            now=self.samples[-1],
            cpu_percent=spread([sample.cpu_percent for sample in self.samples]),
            memory_percent=spread([sample.memory_percent for sample in self.samples]),
            warnings=self.warnings(self.samples[-1]),
        )

    def sample(self) -> Sample:
        reading = take_reading(self.config.disks)
        sample = sample_between(self.last_reading, reading)
        self.last_reading = reading
        self.samples.append(sample)
        return sample

    def warnings(self, sample: Sample) -> list[str]:
        measured = [
            ("CPU", sample.cpu_percent, self.config.cpu_warning_percent),
            ("memory", sample.memory_percent, self.config.memory_warning_percent),
            *((f"disk {path}", used, self.config.disk_warning_percent) for path, used in sample.disk_percent.items()),
        ]
        return [f"{what} at {value:.0f} %, above {limit:.0f} %" for what, value, limit in measured if value > limit]


if __name__ == "__main__":
    SystemMonitor.main()
