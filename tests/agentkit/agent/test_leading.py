"""`self.leader(name)` in an agent: alone, and against a small real node that elects, takes away, goes and comes back."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentkit import BaseAgent, ConfigError, LeadershipLost, StartupError, Term, every
from agentkit.agent.leading import Leading
from agentkit.clock import now_s
from agentkit.directory.mesh import MeshDirectory
from agentkit.testing import running
from tests.agentkit.directory.test_mesh import SmallNode
from tests.agentkit.support import eventually

ME = {"id": "m/A", "incarnation": 5}


class Electing(SmallNode):
    """Elects whom the test says."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stood: list[tuple[Any, int, dict[str, Any]]] = []
        self.resigned: list[int] = []

    def _handle(self, writer: asyncio.StreamWriter, id: int, operation: str, arguments: dict[str, Any]) -> None:
        from agentkit.wire.frames import pack

        if operation == "lead":
            self.stood.append((writer, id, arguments))
        elif operation == "resign":
            self.resigned.append(arguments["fence"])
            writer.write(pack([id, "ok", {}]))
        else:
            super()._handle(writer, id, operation, arguments)

    def told(self, event: dict[str, Any]) -> None:
        from agentkit.wire.frames import pack

        writer, id, _ = self.stood[-1]
        writer.write(pack([id, "event", event]))


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ak-") as folder:
        yield Path(folder) / "node.sock"


@asynccontextmanager
async def standing(path: Path) -> AsyncIterator[tuple[Electing, Leading]]:
    """An agent's side, open, and its node."""
    node = Electing(path)
    await node.start()

    async def connected(_: MeshDirectory) -> None:
        leading.connected()

    directory = MeshDirectory(str(path), here="m", on_connected=connected)
    leading = Leading(ME, directory)
    leading.open()
    try:
        yield node, leading
    finally:
        leading.close()
        await directory.close()
        await node.stop()


async def test_an_agent_without_a_node_leads_at_once_and_each_term_has_a_greater_fence() -> None:
    class Alone(BaseAgent):
        pass

    async with running(Alone) as it:
        fences = []
        for _ in range(3):
            leader = it.agent.leader("x")
            assert not leader.is_leader
            async with leader as term:
                assert leader.is_leader
                assert leader.term is term
                fences.append(term.fence)
            assert not term.is_valid
        assert fences == sorted(set(fences))
        async with it.agent.leader("x") as first, it.agent.leader("x") as second:  # leading is the process's
            assert first is second
        with pytest.raises(ConfigError, match="letters"):
            it.agent.leader("a b")


async def test_every_with_a_leader_runs_while_the_agent_leads() -> None:
    class Ticking(BaseAgent):
        ran = 0

        @every("10ms", leader="ticker")
        async def tick(self) -> None:
            assert self.leader("ticker").is_leader
            self.ran += 1

    async with running(Ticking) as it:
        await eventually(lambda: it.agent.ran > 2)
        assert it.agent.leader("ticker").is_leader

    with pytest.raises(ConfigError, match="async def"):

        class Threaded(BaseAgent):
            @every("10ms", leader="ticker")
            def tick(self) -> None: ...


async def test_waiting_to_lead_in_on_start_is_refused_with_the_reason() -> None:
    class Early(BaseAgent):
        async def on_start(self) -> None:
            async with self.leader("x"):
                pass

    with pytest.raises(StartupError, match="would wait for ever"):
        async with running(Early):
            pass


async def test_a_block_whose_term_is_lost_is_cancelled_and_answered_for_when_it_has_ended(path: Path) -> None:
    async with standing(path) as (node, leading):
        may_end = asyncio.Event()

        async def work() -> None:
            async with leading.leader("x") as term:
                assert term.fence == 3
                try:
                    await asyncio.sleep(3600)
                finally:
                    assert not term.is_valid
                    await may_end.wait()

        task = asyncio.create_task(work())
        await eventually(lambda: node.stood)
        node.told({"fence": 3, "until_s": None})
        await eventually(lambda: leading.leader("x").is_leader)
        node.told({"lost": "away"})
        await eventually(lambda: not leading.leader("x").is_leader)
        assert not node.resigned
        may_end.set()
        with pytest.raises(LeadershipLost, match="away"):
            await task
        await eventually(lambda: node.resigned == [3])


async def test_lead_begins_again_in_the_next_term(path: Path) -> None:
    async with standing(path) as (node, leading):
        terms: list[int] = []

        async def work(term: Term) -> str:
            terms.append(term.fence)
            if len(terms) == 1:
                await asyncio.sleep(3600)
            return "done"

        task = asyncio.create_task(leading.leader("x").lead(work))
        await eventually(lambda: len(node.stood) == 1)
        node.told({"fence": 3, "until_s": None})
        await eventually(lambda: terms == [3])
        node.told({"lost": "away"})
        await eventually(lambda: len(node.stood) == 2)
        node.told({"fence": 4, "until_s": None})
        assert await task == "done"
        await eventually(lambda: node.resigned == [3, 4])


async def test_a_term_with_a_last_moment_ends_by_the_agents_own_clock_unless_it_is_put_off(path: Path) -> None:
    async with standing(path) as (node, leading):
        task = asyncio.create_task(_within(leading.leader("x").__aenter__, leading))
        await eventually(lambda: node.stood)
        node.told({"fence": 3, "until_s": now_s() + 0.3})
        term = await task
        node.told({"until_s": 0.0})  # a node that does not know yet takes nothing away
        node.told({"until_s": now_s() + 0.5})
        assert term.is_valid
        await eventually(lambda: not term.is_valid)
        with pytest.raises(LeadershipLost):
            term.check()
        node.told({"until_s": now_s() + 3600})
        await asyncio.sleep(0.05)
        assert not term.is_valid  # what is over does not begin anew


async def test_a_block_is_cancelled_when_the_last_moment_of_its_term_has_come(path: Path) -> None:
    async with standing(path) as (node, leading):

        async def work() -> None:
            async with leading.leader("x"):
                await asyncio.sleep(3600)

        task = asyncio.create_task(work())
        await eventually(lambda: node.stood)
        node.told({"fence": 3, "until_s": now_s() + 0.05})
        with pytest.raises(LeadershipLost, match="not been heard"):
            await task
        await eventually(lambda: 3 in node.resigned)


async def _within(enter: Callable[[], Any], leading: Leading) -> Term:
    term: Term = await enter()
    assert leading.leader("x").term is term
    return term


async def test_a_leader_keeps_its_term_while_the_node_is_away_and_claims_it_from_the_next(path: Path) -> None:
    async with standing(path) as (node, leading):
        over = asyncio.Event()

        async def work() -> None:
            async with leading.leader("x"):
                await over.wait()

        task = asyncio.create_task(work())
        await eventually(lambda: node.stood)
        node.told({"fence": 3, "until_s": None})
        await eventually(lambda: leading.leader("x").is_leader)
        await node.stop()
        await node.start()
        await eventually(lambda: len(node.stood) > 1 and node.stood[-1][2]["claims"] == 3)
        assert leading.leader("x").is_leader
        node.told({"fence": 3, "until_s": None})
        await node.stop()
        over.set()
        await task  # its end is told to the node that comes next
        await node.start()
        await eventually(lambda: 3 in node.resigned)


async def test_who_stands_no_more_says_so_and_is_not_elected_by_an_older_word(path: Path) -> None:
    async with standing(path) as (node, leading):

        async def work() -> None:
            async with leading.leader("x"):
                raise AssertionError("elected")

        task = asyncio.create_task(work())
        await eventually(lambda: node.stood)
        task.cancel()
        await asyncio.wait((task,))
        await eventually(lambda: node.resigned == [0])
        node.told({"fence": 3, "until_s": None})
        await asyncio.sleep(0.05)
        assert not leading.leader("x").is_leader


async def test_an_agent_that_is_told_to_stop_is_not_elected_any_more(path: Path) -> None:
    async with standing(path) as (node, leading):
        task = asyncio.create_task(leading.leader("x").lead(lambda _: asyncio.sleep(0)))
        await eventually(lambda: node.stood)
        leading.no_more()
        await eventually(lambda: node.resigned == [0])
        task.cancel()
        await asyncio.wait((task,))
