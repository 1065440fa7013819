"""What a node asks of one that says that it has a newer revision. The rules are in tests/startup/plan/test_fencing.py, whole nodes
with a link that is cut in tests/hosts/test_partition.py."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentkit.names import AgentId
from startup.node import fence
from startup.node.fence import Fence
from startup.plan.fencing import Fencing

ANSWER = {"rank": [2, "d"], "machine": "a", "given": ["b/Stays"]}


class Mesh:
    """Answers when it has been asked so often."""

    def __init__(self, answers_at: int, others: list[str]) -> None:
        self.asked, self._answers_at, self._others = 0, answers_at, others

    def others(self) -> list[str]:
        return self._others

    async def ask(self, machine: str, method: str, said: Mapping[str, Any], within_s: float) -> Any:
        self.asked += 1
        return ANSWER if self.asked == self._answers_at else None


def fenced(mesh: Mesh, folder: Path) -> tuple[Fence, Fencing, asyncio.Event]:
    """At revision 1. The event is set when the reconciler is to look again."""
    looked = asyncio.Event()
    core = SimpleNamespace(fencing=Fencing(), look_again=lambda now_s: looked.set())
    turns = SimpleNamespace(core=core, now_s=lambda: 0.0, soon=lambda: None)
    revisions = SimpleNamespace(summary=lambda: {"number": 1, "digest": "c"})
    places = SimpleNamespace(state=folder, machine="b")
    return Fence(places, turns, revisions, mesh), core.fencing, looked  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "ASK_AGAIN_S", 0.001)


async def test_who_does_not_answer_at_first_is_asked_until_it_does(tmp_path: Path) -> None:
    mesh = Mesh(answers_at=3, others=["a"])
    node, fencing, looked = fenced(mesh, tmp_path)
    node.heard("a", (2, "d"))
    async with asyncio.timeout(10):
        await looked.wait()
    assert mesh.asked == 3
    assert fencing.why_not(AgentId("b", "Gone"))
    assert not fencing.why_not(AgentId("b", "Stays"))
    node.close()


async def test_who_is_no_longer_of_the_fleet_is_not_asked_again(tmp_path: Path) -> None:
    mesh = Mesh(answers_at=0, others=[])
    node, _, _ = fenced(mesh, tmp_path)
    node.heard("a", (2, "d"))
    async with asyncio.timeout(10):
        while node._asked:
            await asyncio.sleep(0.001)
    assert mesh.asked == 1
    node.close()
