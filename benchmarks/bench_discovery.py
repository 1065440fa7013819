"""From READY to being seen at another agent, by way of the nodes and by way of Consul; and what Consul has to do for that.

    python benchmarks/bench_discovery.py [--quick] [--json] [--only TEXT]

- seen: 20 agents on one machine are restarted, four at a time, 20 times each (--quick: 4); each time, the seconds from an agent's
  READY to the moment that a subscriber at another machine's node, as agents are, is told of the new life. `mesh`: two nodes that speak
  with each other; `consul`: two nodes that know nothing of each other, and one Consul.
- idle: fleet84 with `registry: consul`; requests of both its nodes to Consul in 60 s of rest (--quick: 20 s).
- back: Consul is killed and comes back with nothing, 5 times (--quick: once); seconds from its having a leader to its
  showing all 84 as passing.

Needs the program `consul`, or tests' copy of it (python -m tests.consul.debian).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench_startup import FLEET84, Fleet, fleet
from common import ROOT, Table, free_ports, options, percentile, say, show

from agentkit.directory.base import AgentRecord
from agentkit.directory.mesh import MeshDirectory
from startup.control import NodeConnection

sys.path.insert(0, str(ROOT))  # a real Consul, as tests have it
from tests.consul.server import Server

AGENTS: Final = 20
#: Restarted together: all at once, two cores are busy with forks for longer than news takes.
TOGETHER: Final = 4
ROUNDS: Final = (20, 4)
IDLE_S: Final = (60.0, 20.0)
RETURNS: Final = (5, 1)
PATIENCE_S: Final = 60.0

AGENT: Final = """
from agentkit import BaseAgent

class Plain(BaseAgent):
    pass
"""


def fleet_file(folder: Path, machines: list[str], consul: Server | None) -> Path:
    """A fleet of `machines`: AGENTS agents run `here`, one on any other."""
    (folder / "plain.py").write_text(AGENT)
    ids = [(machine, f"P{n}") for machine in machines for n in range(AGENTS if machine == "here" else 1)]
    ports = iter(free_ports(2 * len(ids)))
    agents = {
        f"{name}{machine}": {
            "agent": "plain:Plain",
            "machine": machine,
            "port": next(ports),
            "health_check_port": next(ports),
            "restart": {"delay": "0s", "max_attempts": 10_000},
        }
        for machine, name in ids
    }
    document = {
        "version": 1,
        "cluster": "seen",
        "project_root": ".",
        "preload": ["plain"],
        "machines": {name: {"host": "127.0.0.1"} for name in machines},
        "port_ranges": {"core": "1024-65535"},
        "agent_groups": {"core": agents},
        **({"registry": "consul", "consul": {"address": consul.address}} if consul else {}),
    }
    file = folder / "seen.yaml"
    file.write_text(json.dumps(document))
    return file


class Subscriber:
    """What an agent at a node is told, and when."""

    def __init__(self, control: str, machine: str) -> None:
        self.seen_s: dict[tuple[str, int], float] = {}
        self.directory = MeshDirectory(control, here=machine, on_records=self._on_records)

    def _on_records(self, _: str, records: tuple[AgentRecord, ...]) -> None:
        for record in records:
            if record.phase == "ready":
                self.seen_s.setdefault((str(record.id), int(record.incarnation)), time.time())

    async def until(self, key: tuple[str, int]) -> float:
        ends_s = time.monotonic() + PATIENCE_S
        while key not in self.seen_s:
            if time.monotonic() > ends_s:
                raise RuntimeError(f"{key[0]}, life {key[1]}, was never seen")
            await asyncio.sleep(0.005)
        return self.seen_s[key]


async def delays_s(here: str, there: str, rounds: int) -> list[float]:
    """Of every agent's every life, the first left out: from READY on one node to being told by the other (control sockets)."""
    subscriber = Subscriber(there, "there")
    found: list[float] = []
    with NodeConnection.connect(Path(here)) as node:

        def rows() -> dict[str, dict[str, Any]]:
            return {
                row["id"]: row for row in node.ask("status", memory=False)["agents"] if row["id"].startswith("here/")
            }

        try:
            for id, row in rows().items():
                await look_up(subscriber, id)
                await subscriber.until((id, row["incarnation"]))
            for group in rounds * [*batched(sorted(rows()), TOGETHER)]:
                before = {id: row["incarnation"] for id, row in rows().items() if id in group}
                node.ask("restart", agents=list(before))
                ends_s = time.monotonic() + PATIENCE_S
                while not all(is_new(rows()[id], incarnation) for id, incarnation in before.items()):
                    if time.monotonic() > ends_s:
                        raise RuntimeError("a restart does not come about")
                    await asyncio.sleep(0.02)
                for id in group:
                    row = rows()[id]
                    found.append(await subscriber.until((id, row["incarnation"])) - row["stamps"]["ready_s"])
        finally:
            await subscriber.directory.close()
    return found


def is_new(row: dict[str, Any], before: int) -> bool:
    """Whether an agent has been replaced, and nothing of its other life is left."""
    return row["incarnation"] != before and row["phase"] == "ready" and not row["roll"]


def batched(ids: list[str], size: int) -> list[list[str]]:
    return [ids[first : first + size] for first in range(0, len(ids), size)]


async def look_up(subscriber: Subscriber, id: str) -> None:
    """As an agent does at first use: until somebody of that name is known."""
    from agentkit.errors import AgentUnknown

    ends_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            await subscriber.directory.lookup(id)
            return
        except AgentUnknown:
            if time.monotonic() > ends_s:
                raise
            await asyncio.sleep(0.05)


def seen_by_mesh(rounds: int) -> list[float]:
    with fleet() as ours:
        ours.file = fleet_file(ours.folder, ["here", "there"], None)
        ours.up()
        try:
            nodes = ours.nodes()
            return asyncio.run(delays_s(nodes["here"]["control"], nodes["there"]["control"], rounds))
        finally:
            ours.down()


def seen_by_consul(rounds: int) -> list[float]:
    with ExitStack() as stack:
        server = started(stack)
        sides: list[Fleet] = []
        for machine in ("here", "there"):
            side = stack.enter_context(fleet())
            side.file = fleet_file(side.folder, [machine], server)
            side.up()
            stack.callback(side.down)
            sides.append(side)
        here, there = (next(iter(side.nodes().values()))["control"] for side in sides)
        return asyncio.run(delays_s(here, there, rounds))


def rest_and_return(idle_s: float, returns: int) -> tuple[int, float, list[float]]:
    """Requests of an idle fleet84, the seconds in which they were counted, and seconds of each return."""
    with ExitStack() as stack:
        server = started(stack)
        ours = stack.enter_context(fleet())
        ours.file = ours.folder / "fleet84.yaml"
        text = FLEET84.read_text().replace("project_root: ..", f"project_root: {ROOT}")
        ours.file.write_text(f"registry: consul\nconsul: {{address: '{server.address}'}}\n{text}")
        _, up = ours.up()
        stack.callback(ours.down)
        wanted = len(up["agents"])
        until_passing(server, wanted)
        time.sleep(5.0)  # the last news of the start
        calls, began_s = counted(ours), time.monotonic()
        time.sleep(idle_s)
        made, took_s = counted(ours) - calls, time.monotonic() - began_s
        back = []
        for number in range(returns):
            say(f"return {number + 1} of {returns}")
            server.stop()
            time.sleep(4.0)
            server.start()
            back_s = time.monotonic()
            until_passing(server, wanted)
            back.append(time.monotonic() - back_s)
        return made, took_s, back


def started(stack: ExitStack) -> Server:
    server = Server()
    server.start()
    stack.callback(server.close)
    return server


def until_passing(server: Server, wanted: int) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while sum(status == "passing" for status in server.statuses("agentkit-fleet84").values()) < wanted:
        if time.monotonic() > ends_s:
            raise RuntimeError("not everybody is registered")
        time.sleep(0.02)


def counted(ours: Fleet) -> int:
    """Requests that the nodes have made so far."""
    total = 0
    for node in ours.nodes().values():
        with NodeConnection.connect(Path(node["control"])) as connection:
            total += connection.ask("registry")["calls"]
    return total


def main() -> None:
    chosen = options(__doc__ or "")
    rounds, idle_s, returns = ROUNDS[chosen.quick], IDLE_S[chosen.quick], RETURNS[chosen.quick]
    seen = Table("from READY to being seen at another agent, ms", ("way", "lives", "p50", "p99", "longest", "wanted"))
    for way, measure, wanted in (("mesh", seen_by_mesh, "p99 30"), ("consul", seen_by_consul, "p99 1000")):
        if not chosen.only or any(text in way for text in chosen.only):
            say(f"{way}: {rounds} restarts of {AGENTS} agents")
            ms = sorted(1000 * delay_s for delay_s in measure(rounds))
            seen.add(way, len(ms), percentile(ms, 50), percentile(ms, 99), ms[-1], wanted)
    tables = [seen]
    if not chosen.only or any(text in "fleet84" for text in chosen.only):
        say("fleet84 with Consul")
        made, took_s, back = rest_and_return(idle_s, returns)
        load = Table("what fleet84 asks of Consul", ("what", "measured", "wanted"))
        load.add("requests/s at rest", made / took_s, "10 at most")
        load.add("s until all are registered again, median", median(back), "5 at most")
        load.add("s until all are registered again, longest", max(back), "5 at most")
        tables.append(load)
    show("bench_discovery", tables, as_json=chosen.json)


if __name__ == "__main__":
    main()
