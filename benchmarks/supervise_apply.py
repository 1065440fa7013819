"""A change of all 84 agents while they are called: what becomes of the calls, and how long it takes."""

from __future__ import annotations

import array
import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench_startup import FLEET84, Fleet, fleet
from common import ROOT, Options, Table, percentile, say

from agentkit import CallError, Client

#: Callers that never pause, half of them by a method that may be repeated and half by one that may not.
CALLERS: Final = 32
#: Connections to each agent that they share.
CLIENTS: Final = 4
#: A caller that waited for longer than the default deadline has failed.
TIMEOUT_S: Final = 5.0
#: Ways to bring the change about: (long form, short form).
WAYS: Final = (("1", "4", "25%", "up"), ("25%", "up"))

#: A member of the fleet that writes down each call that may not be repeated.
MEMBER: Final = """
import os
from agentkit import rpc
from agents.member import Member

class Diarist(Member):
    async def on_start(self) -> None:
        await super().on_start()
        self.diary = os.open(os.environ["DIARY"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

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
class Seen:
    """What the callers have seen."""

    made: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    waits_s: list[float] = field(default_factory=list)
    is_over: bool = False

    async def call(self, client: Client, names: Iterator[str], method: str, first: int) -> None:
        """One caller: one agent after the other; no other caller uses the numbers that follow `first`."""
        for n, name in zip(itertools.count(first), names, strict=False):
            if self.is_over:
                return
            self.made += 1
            began_s = time.perf_counter()
            try:
                if await client.call(name, method, {"n": n}, timeout=TIMEOUT_S) != n:
                    self.failed["wrong answer"] += 1
            except CallError as error:
                self.failed[error.code] += 1
            self.waits_s.append(time.perf_counter() - began_s)


def apply(wanted: Options) -> list[Table]:
    table = Table(
        f"a change of all agents of {FLEET84.name} under {CALLERS} callers",
        ("at a time", "s", "calls", "failed", "of what", "run twice", "p50 ms", "p99.9 ms", "longest ms"),
        notes=[
            "`up` replaces them all at once, in the order of dependencies; the others are `apply --max-unavailable`"
        ],
    )
    with fleet() as ours:
        diary = ours.folder / "diary"
        ours.file = ours.folder / "changed.yaml"
        (ours.folder / "diarist.py").write_text(MEMBER)
        write(ours, diary, 0)
        _, up = ours.up()
        names = [str(agent["name"]) for agent in up["agents"]]
        for number, way in enumerate(WAYS[wanted.quick], start=1):
            write(ours, diary, number)
            words = (
                ("up", str(ours.file)) if way == "up" else ("apply", str(ours.file), "--yes", "--max-unavailable", way)
            )
            seen, seconds = asyncio.run(under_callers(ours, names, words))
            waits_ms = [wait_s * 1000 for wait_s in seen.waits_s]
            table.add(
                way, seconds, seen.made, seen.failed.total(), ", ".join(f"{n} {code}" for code, n in seen.failed.items()) or "-",
                run_twice(diary), percentile(waits_ms, 50), percentile(waits_ms, 99.9), max(waits_ms),
            )  # fmt: skip
            say(f"apply, {way}: {seconds:.1f} s, {seen.failed.total()} of {seen.made} calls failed")
        ours.down()
    return [table]


def write(ours: Fleet, diary: Path, number: int) -> None:
    """fleet84 with diarists; what differs between two numbers is a variable of every agent."""
    text = (
        FLEET84.read_text().replace("agents.member:Member", "diarist:Diarist").replace("[agents.member]", "[diarist]")
    )
    text = text.replace("project_root: ..", "project_root: .", 1)
    defaults = f'defaults: {{env: {{DIARY: "{diary}", CHANGE: "{number}", PYTHONPATH: "{ROOT}"}}}}\n'
    ours.file.write_text(text.replace("agent_groups:", defaults + "agent_groups:", 1))


async def under_callers(ours: Fleet, names: Sequence[str], words: Sequence[str]) -> tuple[Seen, float]:
    """What the callers saw, and how long the command took, in seconds."""
    node = min(ours.nodes().items())[1]
    seen = Seen()
    clients = [Client(node=str(node["control"])) for _ in range(CLIENTS)]
    for client in clients:
        await client.__aenter__()
    callers: list[asyncio.Task[None]] = []
    try:
        first = time.time_ns()
        for n in range(CALLERS):
            start = n * len(names) // CALLERS
            order = itertools.cycle([*names[start:], *names[:start]])
            method = ("once", "again")[n // CLIENTS % 2]
            callers.append(asyncio.create_task(seen.call(clients[n % CLIENTS], order, method, first + n * 2**40)))
        seconds, _ = await asyncio.to_thread(ours.command, *words)
        return seen, seconds
    finally:
        seen.is_over = True
        await asyncio.gather(*callers)
        for client in clients:
            await client.__aexit__(None, None, None)


def run_twice(diary: Path) -> int:
    """Calls whose handler ran more than once."""
    ran = array.array("Q", diary.read_bytes() if diary.exists() else b"")
    os.truncate(diary, 0)  # it stays open in every agent
    return len(ran) - len(set(ran))
