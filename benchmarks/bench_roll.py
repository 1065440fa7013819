"""One agent restarted again and again under callers that never pause: what becomes of their calls.

    python benchmarks/bench_roll.py [--quick] [--json] [--only TEXT]

200 restarts (--quick: 10) for each way there is to bring one about, of an agent of a fleet under its node, while 64 callers in this process
each make one call after the other, half of them to a method that may be repeated and half to one that may not. Printed:
the calls, how many failed (and of what), how many handlers ran twice for one call, and the longest that a caller had to wait.

- overlap, handover: what `agentkit restart` asks of the node, in either way (docs/rolls.md), until the old process is gone;
- SIGTERM: somebody ends the process, the node starts the next one: a restart without a roll.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench_startup import Fleet, fleet
from common import Table, free_ports, options, percentile, say, show

from agentkit import CallError, Client
from startup.control import NodeConnection

CALLERS: Final = 64
#: Connections that they share: each has as many callers.
CLIENTS: Final = 8
RESTARTS: Final = (200, 10)
#: A caller that waited for longer than the default deadline has failed.
TIMEOUT_S: Final = 5.0
#: Between two restarts, in seconds: time for the callers to be at full speed again.
PAUSE_S: Final = 0.05
ROLLS: Final = ("overlap", "handover")
WAYS: Final = (*ROLLS, "SIGTERM")
#: A restart that takes longer has failed, in seconds.
RESTART_S: Final = 30.0

AGENT: Final = """
import os
from agentkit import AgentConfig, BaseAgent, rpc

class Target(BaseAgent):
    class Config(AgentConfig):
        diary: str

    async def on_start(self) -> None:
        self.diary = os.open(self.config.diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def on_stop(self) -> None:
        os.close(self.diary)

    @rpc
    async def once(self, n: int) -> int:
        os.write(self.diary, n.to_bytes(8, "little"))
        return n

    @rpc(idempotent=True)
    async def again(self, n: int) -> int:
        return n
"""


@dataclass(slots=True)
class Calls:
    """What the callers have seen."""

    made: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    waits_s: list[float] = field(default_factory=list)
    is_over: bool = False

    async def go_on(self, client: Client, name: str, method: str, first: int) -> None:
        """One caller: `first` is the number of its first call, no other caller uses the ones that follow."""
        n = first
        while not self.is_over:
            n += 1
            self.made += 1
            began_s = time.perf_counter()
            try:
                if await client.call(name, method, {"n": n}, timeout=TIMEOUT_S) != n:
                    self.failed["wrong answer"] += 1
            except CallError as error:
                self.failed[error.code] += 1
            self.waits_s.append(time.perf_counter() - began_s)


class Target:
    """One agent, seen through its node."""

    def __init__(self, ours: Fleet, name: str) -> None:
        (node,) = ours.nodes().values()
        self.control = str(node["control"])
        self.name = name
        self._connection = NodeConnection.connect(self.control)

    def row(self) -> dict[str, Any]:
        rows = self._connection.ask("status", memory=False)["agents"]
        return next(dict(row) for row in rows if row["id"] == f"here/{self.name}")

    def restart(self, row: dict[str, Any]) -> None:
        self._connection.ask("restart", agents=[row["id"]])

    def terminate(self, row: dict[str, Any]) -> None:
        os.kill(row["pid"], signal.SIGTERM)

    def roll(self, way: Callable[[dict[str, Any]], None], times: int) -> float:
        """So many restarts, one after the other; seconds of the slowest. RuntimeError when one does not come about."""
        slowest_s = 0.0
        for n in range(times):
            before = self.row()
            began_s = time.monotonic()
            way(before)
            while (row := self.row())["incarnation"] == before["incarnation"] or row["phase"] != "ready" or row["roll"]:
                if time.monotonic() - began_s > RESTART_S:
                    raise RuntimeError(
                        f"restart {n}: still {row['phase']}, {row['reason']}{row['roll']}{row['roll_error']}"
                    )
                time.sleep(0.005)
            slowest_s = max(slowest_s, time.monotonic() - began_s)
            time.sleep(PAUSE_S)
        return slowest_s

    def close(self) -> None:
        self._connection.close()


async def under_callers(
    target: Target, way: Callable[[dict[str, Any]], None], times: int
) -> tuple[Calls, float, float]:
    """What the callers saw, seconds of it all, seconds of the slowest restart."""
    calls = Calls()
    clients = [Client(node=target.control) for _ in range(CLIENTS)]
    for client in clients:
        await client.__aenter__()
    try:
        began_s = time.monotonic()
        first = time.time_ns()
        callers = [
            asyncio.create_task(
                calls.go_on(clients[n % CLIENTS], target.name, ("once", "again")[n // CLIENTS % 2], first + n * 2**40)
            )
            for n in range(CALLERS)
        ]
        slowest_s = await asyncio.to_thread(target.roll, way, times)
        calls.is_over = True
        await asyncio.gather(*callers)
        return calls, time.monotonic() - began_s, slowest_s
    finally:
        for client in clients:
            await client.__aexit__(None, None, None)


def run_twice(diary: Path) -> int:
    """Calls whose handler ran more than once."""
    ran = array.array("Q", diary.read_bytes())
    diary.unlink()
    return len(ran) - len(set(ran))


def main() -> None:
    chosen = options(__doc__ or "")
    times = RESTARTS[chosen.quick]
    table = Table(
        f"{times} restarts under {CALLERS} callers",
        ("way", "calls", "failed", "of what", "run twice", "calls/s", "p50 ms", "p99.9 ms", "longest ms", "slowest restart ms"),
    )  # fmt: skip
    with fleet() as ours:
        ours.file = ours.folder / "roll.yaml"
        diary = ours.folder / "diary"
        (ours.folder / "rolling.py").write_text(AGENT)
        ports = free_ports(2 * len(WAYS))
        agents = {
            f"Target{way}": {
                "agent": "rolling:Target", "machine": "here", "port": ports.pop(), "health_check_port": ports.pop(),
                "config": {"diary": str(diary)}, "restart": {"delay": "0s", "max_attempts": 10_000},
                "roll": way if way in ROLLS else "overlap",
            }
            for way in WAYS
        }  # fmt: skip
        ours.file.write_text(
            json.dumps({
                "version": 1, "cluster": "roll", "project_root": ".", "machines": {"here": {"host": "127.0.0.1"}},
                "port_ranges": {"core": "1024-65535"}, "agent_groups": {"core": agents},
            })
        )  # fmt: skip
        ours.up()
        try:
            for name in WAYS:
                if not chosen.only or any(text in name for text in chosen.only):
                    target = Target(ours, f"Target{name}")
                    way = target.restart if name in ROLLS else target.terminate
                    say(f"{name}: {times} restarts")
                    calls, seconds, slowest_s = asyncio.run(under_callers(target, way, times))
                    waits_ms = [wait_s * 1000 for wait_s in calls.waits_s]
                    table.add(
                        name, calls.made, calls.failed.total(), ", ".join(f"{n} {code}" for code, n in calls.failed.items()) or "-",
                        run_twice(diary), calls.made / seconds, percentile(waits_ms, 50), percentile(waits_ms, 99.9), max(waits_ms),
                        slowest_s * 1000,
                    )  # fmt: skip
                    target.close()
        finally:
            ours.down()
    show("bench_roll", [table], as_json=chosen.json)


if __name__ == "__main__":
    main()
