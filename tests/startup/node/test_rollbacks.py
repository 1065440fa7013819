"""A node that lacks the revision before a failed rollout. Whole nodes: tests/faults/test_apply.py."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from startup.node.rollbacks import Rollbacks
from startup.plan.revision import Revision, Rollout
from startup.plan.rollout import Failure
from tests.startup.plan.builders import agent, aid, revision

FAILURE = Failure(aid("m/A"), "it did not become ready")


class Kept:
    """The revisions of a node that has only the current one."""

    def __init__(self, current: Revision) -> None:
        self.current = current

    def earlier(self, number: int) -> Revision | None:
        return None

    def propose(self, base: int, revision: Revision) -> None:
        self.current = revision


class Others:
    """One machine, which sends what it has once it may."""

    def __init__(self, *revisions: Revision) -> None:
        self.asked: list[int] = []
        self.may = asyncio.Event()
        self._kept = {kept.number: kept for kept in revisions}

    def others(self) -> list[str]:
        return ["n"]

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any:
        self.asked.append(said["number"])
        await self.may.wait()
        return {"revision": self._kept[said["number"]].to_wire()}


def rolled_out(base: Revision) -> Revision:
    return replace(
        base,
        number=base.number + 1,
        rollout=Rollout(base=base.number, base_digest=base.digest(), max_unavailable=1),
    )


async def test_what_fails_while_another_revisions_base_is_being_asked_for_is_undone_too() -> None:
    first = revision(agent("A"), number=1)
    second = rolled_out(first)
    third = rolled_out(second)
    kept, others, taken = Kept(second), Others(first, second), asyncio.Event()
    keys = type("Keys", (), {"use": lambda *_: None})()
    rollbacks = Rollbacks(kept, keys, others, lambda *_, **__: taken.set(), lambda: False)  # type: ignore[arg-type]
    rollbacks.failed(FAILURE)
    kept.current = third  # an operator's next one, while the answer is on its way
    rollbacks.failed(FAILURE)
    others.may.set()
    async with asyncio.timeout(10):
        await taken.wait()
    assert sorted(others.asked) == [1, 2]
    assert (kept.current.number, kept.current.fleet) == (4, second.fleet)
    rollbacks.close()
