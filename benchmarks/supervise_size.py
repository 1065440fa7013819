"""What a fleet costs while it does nothing, and what a large one takes: fleet84 at rest, 1,000 agents on this machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil
from bench_startup import AGENTS, FLEET84, SETTLE_S, Fleet, fleet, floor, large_yaml
from common import Options, Table, free_ports, median, pss_mb, say

#: How long the resting fleet is watched, in seconds: (long form, short form).
WATCH_S: Final = (60.0, 10.0)
REST_FLOOR_SCRIPT: Final = Path(__file__).with_name("rest_floor.py")
#: Agents of the large fleet, and how often it is brought up: (long form, short form).
LARGE: Final = ((1000, 3), (100, 1))


def rest(wanted: Options) -> list[Table]:
    watch_s = WATCH_S[wanted.quick]
    with fleet() as ours:
        _, up = ours.up()
        bare = _bare_processes(ours)
        say(f"at rest: settling for {SETTLE_S:g} s, watching for {watch_s:g} s")
        time.sleep(SETTLE_S)
        kinds = {**processes_of(ours, up), "bare process": bare}
        before = {kind: _on_cpu_s(pids) for kind, pids in kinds.items()}
        begun_s = time.monotonic()
        time.sleep(watch_s)
        passed_s = time.monotonic() - begun_s
        shares = {kind: 100 * (_on_cpu_s(pids) - before[kind]) / passed_s for kind, pids in kinds.items()}
        ours.down()
    floor = shares.pop("bare process")
    table = Table(
        f"{FLEET84.name} at rest: of one core",
        ("process", "number", "% of one core", "/ floor"),
        notes=[
            f"time on a processor as the scheduler counts it, over {passed_s:.0f} s; wanted: 3 % at most for all",
            "the floor: forked processes that wake as often as agents do and do nothing, at the same time",
        ],
    )
    for kind, share in shares.items():
        table.add(kind, len(kinds[kind]), share, share / floor)
    total = sum(shares.values())
    table.add("all", sum(len(kinds[kind]) for kind in shares), total, total / floor)
    table.add("floor", len(bare), floor, 1.0)
    return [table]


def _bare_processes(ours: Fleet) -> list[int]:
    parent = ours.processes.start(sys.executable, REST_FLOOR_SCRIPT, AGENTS, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids: list[int] = json.loads(parent.stdout.readline())
    return pids


def large(wanted: Options) -> list[Table]:
    agents, times = LARGE[wanted.quick]
    seconds: dict[str, list[float]] = {"up": [], "status": [], "down": []}
    floors: dict[str, list[float]] = {}
    memory_mb: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="akb") as folder:
        for _ in range(times):
            file = Path(folder, "large.yaml")
            file.write_text(large_yaml(free_ports(2 * agents)))
            with fleet(file) as ours:
                took_s, up = ours.up()
                seconds["up"].append(took_s)
                seconds["status"].append(ours.command("status")[0])
                memory_mb = {kind: sum(map(pss_mb, pids)) for kind, pids in processes_of(ours, up).items()}
                seconds["down"].append(ours.down()[0])
            for kind, measured in floor(1, agents).items():
                floors.setdefault(kind, []).extend(measured["seconds"])
            say(f"{agents} agents: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()))
    table = Table(
        f"{agents:,} agents on one machine",
        ("command", "median s", "best s", "worst s", "wanted s", "/ floor"),
        notes=[
            "the floor: as many forks of our zygote that do nothing, and bare agents, until all are ready",
            "memory (PSS) of " + ", ".join(f"{kind}s: {mb:,.0f} MB" for kind, mb in memory_mb.items()),
        ],
    )
    for (name, values), wanted_s in zip(seconds.items(), (10, 1, 10), strict=True):
        per_floor = median(values) / median(floors["floor"]) if name == "up" else None
        table.add(name, median(values), min(values), max(values), wanted_s, per_floor)
    for kind, values in floors.items():
        table.add(kind, median(values), min(values), max(values), None, median(values) / median(floors["floor"]))
    return [table]


def processes_of(ours: Fleet, up: Any) -> dict[str, list[int]]:
    """What runs of a fleet, by kind."""
    agents = [agent["pid"] for agent in up["agents"]]
    zygotes = sorted({psutil.Process(pid).ppid() for pid in agents})
    return {"agent": agents, "node": [node["pid"] for node in ours.nodes().values()], "zygote": zygotes}


def _on_cpu_s(pids: Iterable[int]) -> float:
    """All their threads. From schedstat, in nanoseconds: the steps of 10 ms that /proc/PID/stat counts in are as long as what is looked
    for."""
    total_ns = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
                total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9
