"""`self.resources` of a running agent: who loads, how long a handler has what it got, what sleep does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentkit import BaseAgent, ConfigError, HandlerError, ResourceStatistics, resource, rpc
from agentkit.testing import running
from tests.agentkit.support import eventually


class Thinker(BaseAgent):
    def __init__(self) -> None:
        self.diary: list[str] = []
        self.let_go = asyncio.Event()

    async def on_start(self) -> None:
        self.resources.define("small", lambda: b"x" * 10, keep=True)

    @resource("model-x", size="1Mi", unload="forget")
    def load_model(self) -> bytearray:
        self.diary.append("loads")
        return bytearray(1 << 20)

    @resource
    async def index(self) -> dict[str, bytes]:
        self.diary.append("indexes")
        return {"a": b"x" * 1000}

    def forget(self, model: bytearray) -> None:
        self.diary.append(f"forgets {len(model)}")

    @rpc
    async def think(self) -> int:
        model = await self.resources.get("model-x")
        return len(model) + len(await self.resources.get("index"))

    @rpc
    def think_in_a_thread(self) -> int:
        with self.resources.use("index") as index:
            return len(self.resources.get("model-x")) + len(index)

    @rpc
    async def think_long(self) -> int:
        model = await self.resources.get("model-x")
        await self.let_go.wait()
        return len(model)

    @rpc
    async def statistics(self) -> dict[str, Any]:
        told = self.resources.statistics()
        assert isinstance(told, ResourceStatistics)
        return {"loaded": sorted(told.loaded), "pinned": told.pinned, "loads": told.loads_total}

    @rpc
    async def mistake(self) -> None:
        await self.resources.get("model-z")


async def test_handlers_of_both_kinds_share_what_is_loaded_once() -> None:
    async with running(Thinker) as thinker:
        answers = await asyncio.gather(*(thinker.call(m) for m in ("think", "think_in_a_thread") * 5))
        assert answers == [(1 << 20) + 1] * 10
        assert sorted(thinker.agent.diary) == ["indexes", "loads"]
        await eventually(lambda: thinker.agent.resources.pinned == 0)
        with pytest.raises(HandlerError, match="did you mean 'model-x'"):
            await thinker.call("mistake")
        shown = (await httpx.AsyncClient().get(f"{thinker.health_url}/metrics")).text
        assert 'agent_resource_loads_total{agent="Thinker"} 2.0' in shown
    assert thinker.agent.diary[-1] == f"forgets {1 << 20}"


async def test_what_a_handler_got_stays_until_its_call_is_over() -> None:
    async with running(Thinker) as thinker:
        call = asyncio.ensure_future(thinker.call("think_long"))
        await eventually(lambda: "loads" in thinker.agent.diary and thinker.agent.resources.pinned == 1)
        assert (await thinker.peer.statistics())["pinned"] == 1
        thinker.agent.let_go.set()
        await call
        await eventually(lambda: thinker.agent.resources.pinned == 0)
        assert (await thinker.peer.statistics())["loaded"] == ["model-x"]


async def test_sleep_releases_resources_and_the_first_call_loads_them_again() -> None:
    async with running(Thinker) as thinker:
        await thinker.call("think")
        await thinker.agent.resources.get("small")
        await thinker.fall_asleep()
        assert thinker.agent.resources.statistics().loaded == ("small",)
        assert await thinker.call("think") == (1 << 20) + 1
        assert thinker.agent.diary == ["loads", "indexes", f"forgets {1 << 20}", "loads", "indexes"]


async def test_a_resource_in_use_keeps_it_awake_and_using_one_wakes_it() -> None:
    async with running(Thinker) as thinker:
        async with thinker.agent.resources.use("model-x"):
            with pytest.raises(RuntimeError, match="a resource is in use"):
                await thinker.fall_asleep()
        await thinker.fall_asleep()
        await thinker.agent.resources.get("model-x")
        await eventually(lambda: thinker.agent.asleep is None)


async def test_a_mark_that_names_no_method_is_told(tmp_path: Path) -> None:
    class Wrong(BaseAgent):
        @resource(unload="forgett")
        def model(self) -> bytes:
            return b""

    async with running(Wrong) as wrong:
        with pytest.raises(ConfigError, match="forgett"):
            _ = wrong.agent.resources


async def test_an_authors_own_attribute_of_that_name_goes_before() -> None:
    class Manager(BaseAgent):
        def __init__(self) -> None:
            self.resources = {"cpu": 4}  # type: ignore[misc, assignment]
            self.asleep = False  # type: ignore[misc, assignment]

        @rpc
        async def total(self) -> int:
            return int(self.resources["cpu"])

    async with running(Manager) as manager:
        await manager.fall_asleep()
        assert await manager.peer.total() == 4
        assert manager.agent.asleep is False
