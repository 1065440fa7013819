"""The deep part of bench_hibernate: what becomes of calls to agents whose processes come and go, how long a wake takes, and what a
sleeping fleet costs."""

from __future__ import annotations

import array
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import psutil
from bench_startup import Fleet, fleet
from common import Options, Table, free_ports, percentile, pss_mb, say

from agentkit import CallError, Client
from startup.control import NodeConnection

CALLS: Final = (10_000, 240)
WAKES: Final = (200, 10)
AGENTS: Final = 6
#: Two callers for each agent: between two calls of one, in seconds, at most. Half of them find it asleep or about to be.
PAUSE_S: Final = 0.5
TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 60.0
SEED: Final = 17

AGENT: Final = """
import os
from agentkit import AgentConfig, BaseAgent, rpc

class Target(BaseAgent):
    class Config(AgentConfig):
        diary: str

    async def on_start(self) -> None:
        self.diary = os.open(self.config.diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @rpc
    async def once(self, n: int) -> int:
        os.write(self.diary, n.to_bytes(8, "little"))
        return n
"""


def write_fleet(ours: Fleet, names: list[str], diary: Path, hibernate: dict[str, Any]) -> None:
    (ours.folder / "sleeping.py").write_text(AGENT)
    ports = free_ports(2 * len(names))
    agents = {
        name: {
            "agent": "sleeping:Target", "machine": "here", "port": ports.pop(), "health_check_port": ports.pop(),
            "config": {"diary": str(diary)}, "hibernate": hibernate,
        }
        for name in names
    }  # fmt: skip
    ours.file = ours.folder / "sleep.yaml"
    ours.file.write_text(
        json.dumps({
            "version": 1, "cluster": "sleep", "project_root": ".", "machines": {"here": {"host": "127.0.0.1"}}, "preload": ["sleeping"],
            "port_ranges": {"core": "1024-65535"}, "agent_groups": {"core": agents},
        })
    )  # fmt: skip


def connect(ours: Fleet) -> NodeConnection:
    (node,) = ours.nodes().values()
    return NodeConnection.connect(str(node["control"]))


def rows(connection: NodeConnection) -> dict[str, dict[str, Any]]:
    return {row["id"].rpartition("/")[2]: row for row in connection.ask("status", memory=False)["agents"]}


def calls(chosen: Options) -> list[Table]:
    number = CALLS[chosen.quick]
    names = [f"Target{n}" for n in range(AGENTS)]
    table = Table(
        f"{number:,} calls at random times to {AGENTS} agents that sleep deep after 50 ms",
        ("calls", "lost", "of what", "run twice", "wakes", "restarts", "p50 ms", "p99 ms", "longest ms"),
    )
    with fleet() as ours:
        diary = ours.folder / "diary"
        write_fleet(ours, names, diary, {"after": "50ms", "depth": "deep"})
        ours.up()
        try:
            connection = connect(ours)
            (node,) = ours.nodes().values()
            say(f"calls: {number:,}")
            waits_s, lost = asyncio.run(_at_random(str(node["control"]), names, number))
            told = rows(connection)
            connection.close()
        finally:
            ours.down()
        ran = Counter(array.array("Q", diary.read_bytes()))
    missing = number - len(ran)
    waits_ms = [wait_s * 1000 for wait_s in waits_s]
    table.add(
        number, max(missing, lost.total()), ", ".join(f"{n} {code}" for code, n in lost.items()) or "-", ran.total() - len(ran),
        sum(row["sleep"]["deep"]["wakes"] if row["sleep"] else 0 for row in told.values()), sum(row["restarts"] for row in told.values()),
        percentile(waits_ms, 50), percentile(waits_ms, 99), max(waits_ms),
    )  # fmt: skip
    return [table]


async def _at_random(control: str, names: list[str], number: int) -> tuple[list[float], Counter[str]]:
    waits_s: list[float] = []
    lost: Counter[str] = Counter()
    each = number // (2 * len(names))
    rest = number - each * 2 * len(names)

    async def caller(name: str, first: int, count: int, draw: random.Random) -> None:
        async with Client(node=control) as client:
            for n in range(first, first + count):
                await asyncio.sleep(draw.uniform(0, PAUSE_S))
                began_s = time.perf_counter()
                try:
                    if await client.call(name, "once", {"n": n}, timeout=TIMEOUT_S) != n:
                        lost["wrong answer"] += 1
                except CallError as error:
                    lost[error.code] += 1
                waits_s.append(time.perf_counter() - began_s)

    jobs, first = [], 0
    for place, name in enumerate([*names, *names]):
        count = each + (rest if not place else 0)
        jobs.append(caller(name, first, count, random.Random(SEED + place)))
        first += count
    await asyncio.gather(*jobs)
    return waits_s, lost


def wake(chosen: Options) -> list[Table]:
    times = WAKES[chosen.quick]
    table = Table(f"the first call of a sleeper, {times} times", ("what", "p50 ms", "p99 ms", "longest ms"))
    with fleet() as ours:
        write_fleet(ours, ["Target"], ours.folder / "diary", {"after": "1h", "depth": "deep"})
        ours.up()
        try:
            connection = connect(ours)
            (node,) = ours.nodes().values()
            say(f"wake: {times} times")
            asleep_s, took_s, awake_s = asyncio.run(_first_calls(str(node["control"]), connection, times))
            connection.close()
        finally:
            ours.down()
    for what, found_s in (
        ("first call of a sleeper", asleep_s),
        ("of that: knock to ready, told by the node", took_s),
        ("first call of the same client, awake", awake_s),
    ):
        found_ms = [second * 1000 for second in found_s]
        table.add(what, percentile(found_ms, 50), percentile(found_ms, 99), max(found_ms))
    return [table]


async def _first_calls(
    control: str, connection: NodeConnection, times: int
) -> tuple[list[float], list[float], list[float]]:
    asleep_s, took_s, awake_s = [], [], []
    for n in range(times):
        for found_s, sleeps in ((awake_s, False), (asleep_s, True)):
            async with Client(node=control) as client:
                await client.describe("Target")  # the directory is known; what is measured is the call
            async with Client(node=control) as client:
                await client.names()
                if sleeps:
                    answer = await asyncio.to_thread(connection.ask, "hibernate", agents=["Target"], depth="deep")
                    if answer["awake"]:
                        raise RuntimeError(f"it does not sleep: {answer['awake']}")
                    await asyncio.sleep(0.05)
                began_s = time.perf_counter()
                await client.call("Target", "once", {"n": n}, timeout=TIMEOUT_S)
                found_s.append(time.perf_counter() - began_s)
        took_s.append(rows(connection)["Target"]["sleep"]["deep"]["wake_s"])
    return asleep_s, took_s, awake_s


def memory(_: Options) -> list[Table]:
    table = Table("fleet84 awake and asleep", ("what", "agents asleep", "processes", "PSS MB", "of awake %"))
    with fleet() as ours:
        say("memory: fleet84")
        _, up = ours.up()
        try:
            control = [str(node["control"]) for node in ours.nodes().values()]
            time.sleep(3.0)
            awake = _pss()
            table.add("awake", 0, awake[0], awake[1], 100.0)
            asleep, kept = 0, Counter[str]()
            for path in control:
                connection = NodeConnection.connect(path)
                names = [
                    row["id"] for row in connection.ask("status", memory=False)["agents"] if row["phase"] == "ready" and row["pid"]
                ]  # fmt: skip
                answer = connection.ask("hibernate", agents=names, depth="deep")
                asleep += len(answer["asleep"])
                kept.update(answer["awake"].values())
                connection.close()
            time.sleep(1.0)
            found = _pss()
            table.add("asleep", asleep, found[0], found[1], found[1] * 100 / awake[1])
            table.notes += [f"{count} of {len(up['agents'])}: {why}" for why, count in kept.most_common()]
        finally:
            ours.down()
    return [table]


def _pss() -> tuple[int, float]:
    """Processes below this one that belong to the cluster, and their PSS in MB."""
    sizes = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline() and process.cmdline()[0].startswith("agentkit:"):
                sizes.append(pss_mb(process.pid))
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            continue
    return len(sizes), sum(sizes)


PARTS: Final[dict[str, Callable[[Options], list[Table]]]] = {"calls": calls, "wake": wake, "memory": memory}
