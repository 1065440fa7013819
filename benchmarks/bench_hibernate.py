"""What sleep gives back, and what waking costs.

    python benchmarks/bench_hibernate.py [--quick] [--json] [--only TEXT]

light: agents with a model of 200 MB in a file (--quick: 50 MB), each put to sleep by idling and woken by a call, 20 times (--quick: 4):

- no model: an agent that has nothing to release, for what sleep itself takes and gives;
- hooks: the model is read in `on_start` and `on_wake` and forgotten in `on_hibernate`;
- resource: `@resource`, read when the first call needs it;
- mapped: `define_file`, which the kernel reads as far as it is looked at;
- reading the file: what any program has to wait for who wants the model back, in this process, as the peer of the others.

fleet: the fleet of 84 agents, all asleep: what falling asleep costs, and what the fleet needs then.

Deep (hibernate_deep.py):

- calls: 10,000 (--quick: 240) at random times to agents that sleep deep after 50 ms without one, so that they arrive in every moment of
  falling asleep and waking. Each run of a handler is written down: how many calls were lost, how many ran twice, how many wakes there were;
- wake: 200 (--quick: 10) first calls of a sleeper, from connect to answer; beside them the same calls of the agent awake;
- memory: fleet84 awake and all asleep: PSS of every process of the cluster, nodes and zygotes included.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from bench_startup import FLEET84, Fleet, fleet
from common import Table, cpu_s, free_ports, median, options, percentile, pss_mb, say, show, wakeups_per_second
from hibernate_deep import PARTS as DEEP

from agentkit import Client
from startup.control import NodeConnection

MODEL_MB: Final = (200, 50)
ROUNDS: Final = (20, 4)
#: How long an agent of the first table idles before it sleeps; and sleeps, lest it become patient (docs/hibernation.md), in seconds.
AFTER_S: Final = 0.2
#: The same for a fleet, which has to be up first.
FLEET_AFTER_S: Final = 8.0
#: After that, in seconds, an agent has done all that it does by itself after READY, and is not asleep yet.
SETTLED_S: Final = 3.0
#: Wake-ups are counted for so long, in seconds.
REST_S: Final = (20.0, 5.0)
#: Nothing takes longer, in seconds.
PATIENCE_S: Final = 60.0
KINDS: Final = ("no model", "hooks", "resource", "mapped")

AGENTS: Final = """
from pathlib import Path
from agentkit import AgentConfig, BaseAgent, resource, rpc

PAGE = 4096

class Base(BaseAgent):
    class Config(AgentConfig):
        file: str

    @rpc(timeout="60s")
    async def look(self) -> int:
        return sum(memoryview(await self.model())[::PAGE])

    async def model(self):
        return b"x"

class NoModel(Base):
    pass

class Hooks(Base):
    async def on_start(self):
        self.held = Path(self.config.file).read_bytes()

    async def on_hibernate(self):
        self.held = None

    async def on_wake(self):
        self.held = Path(self.config.file).read_bytes()

    async def model(self):
        return self.held

class Resource(Base):
    @resource("model")
    def load(self):
        return Path(self.config.file).read_bytes()

    async def model(self):
        return await self.resources.get("model")

class Mapped(Base):
    async def on_start(self):
        self.resources.define_file("model", self.config.file)

    async def model(self):
        return await self.resources.get("model")
"""


def rows_of(connection: NodeConnection) -> dict[str, dict[str, Any]]:
    return {str(row["id"]): row for row in connection.ask("status", memory=False)["agents"]}


def until_asleep(connection: NodeConnection, ids: Sequence[str]) -> None:
    """RuntimeError: they do not sleep."""
    ends_s = time.monotonic() + PATIENCE_S
    while not all(row["sleep"].get("depth") == "light" for id, row in rows_of(connection).items() if id in ids):
        if time.monotonic() > ends_s:
            raise RuntimeError(f"still awake: {[rows_of(connection)[id]['sleep'] for id in ids]}")
        time.sleep(0.02)


# --- light ------------------------------------------------------------------------------------------------------------


class Contender:
    """One agent, and what was measured of it."""

    def __init__(self, kind: str, row: dict[str, Any]) -> None:
        self.kind, self.id, self.pid, self.name = (
            kind,
            str(row["id"]),
            int(row["pid"]),
            str(row["id"]).partition("/")[2],
        )
        self.awake: list[float] = []
        self.asleep: list[float] = []
        self.again: list[float] = []
        self.first_ms: list[float] = []
        self.next_ms: list[float] = []

    async def round(self, client: Client, connection: NodeConnection) -> None:
        await self._call_ms(client)
        self.awake.append(pss_mb(self.pid))
        until_asleep(connection, [self.id])
        self.asleep.append(pss_mb(self.pid))
        await asyncio.sleep(AFTER_S * 1.2)
        self.first_ms.append(await self._call_ms(client))
        self.next_ms.append(await self._call_ms(client))
        self.again.append(pss_mb(self.pid))

    async def _call_ms(self, client: Client) -> float:
        began_s = time.perf_counter()
        await client.call(self.name, "look")
        return (time.perf_counter() - began_s) * 1000


async def rounds_of(contenders: Sequence[Contender], rounds: int, node: str, model: Path) -> list[float]:
    """Fills the contenders; ms of reading the file, as often."""
    connection = NodeConnection.connect(node)
    reads_ms = []
    try:
        async with Client(node=node) as client:
            for _ in range(rounds):
                for contender in contenders:
                    await contender.round(client, connection)
                began_s = time.perf_counter()
                sum(memoryview(model.read_bytes())[::4096])
                reads_ms.append((time.perf_counter() - began_s) * 1000)
    finally:
        connection.close()
    return reads_ms


def light(*, quick: bool, only: Sequence[str]) -> Table:
    megabytes, rounds = MODEL_MB[quick], ROUNDS[quick]
    say(f"light: {rounds} rounds with a model of {megabytes} MB")
    table = Table(
        f"light sleep, a model of {megabytes} MB, {rounds} rounds",
        ("agent", "awake MB", "asleep MB", "given back", "awake again MB", "first call p50 ms", "p99 ms", "next call p50 ms"),
    )  # fmt: skip
    kinds = [kind for kind in KINDS if not only or any(text in kind for text in only)]
    with fleet() as ours:
        model = ours.folder / "model.bin"
        model.write_bytes(os.urandom(1 << 20) * megabytes)
        ours.file = ours.folder / "sleep.yaml"
        (ours.folder / "sleepers.py").write_text(AGENTS)
        ports = free_ports(2 * len(kinds))
        agents = {
            kind.title().replace(" ", ""): {
                "agent": f"sleepers:{kind.title().replace(' ', '')}", "port": ports.pop(), "health_check_port": ports.pop(),
                "config": {"file": str(model)}, "hibernate": {"after": f"{AFTER_S * 1000:.0f}ms", "depth": "light"},
            }
            for kind in kinds
        }  # fmt: skip
        ours.file.write_text(
            json.dumps({
                "version": 1, "cluster": "sleep", "project_root": ".", "machines": {"here": {"host": "127.0.0.1"}},
                "port_ranges": {"core": "1024-65535"}, "agent_groups": {"core": agents},
            })
        )  # fmt: skip
        ours.up()
        try:
            (node,) = ours.nodes().values()
            connection = NodeConnection.connect(str(node["control"]))
            rows = rows_of(connection)
            connection.close()
            contenders = [Contender(kind, rows[f"here/{name}"]) for kind, name in zip(kinds, agents, strict=True)]
            reads_ms = asyncio.run(rounds_of(contenders, rounds, str(node["control"]), model))
        finally:
            ours.down()
    for it in contenders:
        awake, asleep = median(it.awake), median(it.asleep)
        table.add(
            it.kind, awake, asleep, f"{(awake - asleep) / awake:.0%}", median(it.again),
            median(it.first_ms), percentile(it.first_ms, 99), median(it.next_ms),
        )  # fmt: skip
    table.add("reading the file", None, None, None, None, median(reads_ms), percentile(reads_ms, 99), None)
    table.notes.append("MB: PSS of the agent; the next call looks at one byte of each page, as the first does")
    return table


# --- a fleet ----------------------------------------------------------------------------------------------------------


def sleeping_fleet(ours: Fleet) -> Path:
    """fleet84 with agents that sleep soon."""
    file = yaml.safe_load(FLEET84.read_text())
    file["project_root"] = str((FLEET84.parent / file.get("project_root", ".")).resolve())
    file.setdefault("defaults", {})["hibernate"] = {"after": f"{FLEET_AFTER_S:g}s", "depth": "light"}
    path = ours.folder / "fleet84.yaml"
    path.write_text(json.dumps(file))
    return path


def whole_fleet(*, quick: bool) -> Table:
    rest_s = REST_S[quick]
    say("fleet: 84 agents fall asleep")
    columns = ("state", "PSS of all agents MB", "an agent MB", "wake-ups/s an agent", "CPU ms an agent")
    table = Table("fleet84, all asleep lightly", columns)
    with fleet() as ours:
        ours.file = sleeping_fleet(ours)
        _, up = ours.up()
        pids = [agent["pid"] for agent in up["agents"]]
        connections = {name: NodeConnection.connect(str(node["control"])) for name, node in ours.nodes().items()}
        try:
            time.sleep(SETTLED_S)
            before_s = sum(map(cpu_s, pids))
            awake = sum(map(pss_mb, pids))
            for name, connection in connections.items():
                until_asleep(connection, [id for id in rows_of(connection) if id.startswith(f"{name}/")])
            falling_s = sum(map(cpu_s, pids)) - before_s
            asleep = sum(map(pss_mb, pids))
            table.add("awake", awake, awake / len(pids), None, None)
            time.sleep(SETTLED_S)
            wakes = sum(wakeups_per_second(pids, rest_s)) / len(pids)
            table.add("asleep", asleep, asleep / len(pids), wakes, falling_s * 1000 / len(pids))
        finally:
            for connection in connections.values():
                connection.close()
            ours.down()
    table.notes.append(
        "CPU: for falling asleep, with the last seconds of idling before it; in steps of 10 ms for each agent"
    )
    return table


def main() -> None:
    chosen = options(__doc__ or "")
    tables = []
    if not chosen.only or any(text in kind for text in chosen.only for kind in KINDS):
        tables.append(light(quick=chosen.quick, only=chosen.only))
    if not chosen.only or "fleet" in chosen.only:
        tables.append(whole_fleet(quick=chosen.quick))
    for name, part in DEEP.items():
        if not chosen.only or name in chosen.only:
            tables += part(chosen)
    show("bench_hibernate", tables, as_json=chosen.json)


if __name__ == "__main__":
    main()
