"""Agents of which one leads, and the log outside of them that shows it: whoever leads adds lines to one file all the time.

The lines of the file are in the order in which they were written, by whichever process. So two leaders at the same time would show as a
smaller fence after a greater one, or as one fence of two processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from startup.spec.fleet import AgentSpec, AgentTarget
from tests.startup.node.cluster import PATIENCE_S
from tests.startup.plan.builders import agent

REPLICA = """
import asyncio, os
from agentkit import AgentConfig, BaseAgent, rpc

class Replica(BaseAgent):
    class Config(AgentConfig):
        log: str

    async def run(self):
        await self.leader("indexer").lead(self.work)

    async def work(self, term):
        log = os.open(self.config.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            while True:
                os.write(log, b"%d %d\\n" % (term.fence, os.getpid()))
                await asyncio.sleep(0.005)
        finally:
            os.close(log)
"""


class Line(NamedTuple):
    fence: int
    pid: int


def replica(folder: Path, text: str, log: Path, port: int, **keys: object) -> AgentSpec:
    """One that wants to lead. `folder`: of its fleet."""
    (folder / "replica.py").write_text(REPLICA)
    target = AgentTarget(module="replica", cls="Replica")
    return agent(text, target=target, port=port, config={"log": str(log)}, **keys)


def lines(log: Path) -> list[Line]:
    if not log.exists():
        return []
    text = log.read_text()
    return [Line(*map(int, line.split())) for line in text[: text.rfind("\n") + 1].splitlines()]


def leads(log: Path, other_than: int = 0, *, than_fence: int = 0) -> Line:
    """Wait until somebody leads, now: its last line."""
    size = log.stat().st_size if log.exists() else 0
    until(lambda: log.exists() and log.stat().st_size > size and _fits(lines(log), other_than, than_fence))
    return lines(log)[-1]


def _fits(found: list[Line], other_than: int, than_fence: int) -> bool:
    return bool(found) and found[-1].pid != other_than and found[-1].fence > than_fence


def until(reached: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + patience_s
    while not reached():
        assert time.monotonic() < deadline_s, "not reached"
        time.sleep(0.02)


def never_two(log: Path) -> list[Line]:
    """The terms, in order."""
    found = lines(log)
    assert [line.fence for line in found] == sorted(line.fence for line in found), _turns(found)
    terms = _turns(found)
    assert len({line.fence for line in terms}) == len(terms), terms
    return terms


def _turns(found: list[Line]) -> list[Line]:
    return [line for before, line in zip([None, *found], found, strict=False) if line != before]


def is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
