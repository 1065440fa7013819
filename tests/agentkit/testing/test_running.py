"""`running(MyAgent)`, which authors' own tests use."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest

from agentkit import AgentConfig, BaseAgent, StartupError, rpc
from agentkit.testing import running
from agentkit.testing.leaks import LeakCheck


class Summarizer(BaseAgent):
    class Config(AgentConfig):
        max_words: int = 50

    @rpc
    async def summarize(self, text: str) -> str:
        return " ".join(text.split()[: self.config.max_words])


class Reader(BaseAgent):
    @rpc
    async def read(self, text: str) -> str:
        return str(await self.peer("Summarizer").summarize(text=text))


async def test_an_agent_runs_with_its_config_and_takes_calls_over_its_socket() -> None:
    async with running(Summarizer, config={"max_words": 2}) as summarizer:
        assert await summarizer.call("summarize", {"text": "one two three"}) == "one two"
        assert await summarizer.peer.summarize(text="four five six") == "four five"
        assert summarizer.endpoint == f"tcp://127.0.0.1:{summarizer.agent.port}"
        assert type(summarizer.agent) is Summarizer


async def test_agents_under_test_call_each_other() -> None:
    async with (
        running(Summarizer, config={"max_words": 1}) as summarizer,
        running(Reader, peers={"Summarizer": summarizer.endpoint}) as reader,
    ):
        assert await reader.peer.read(text="a b") == "a"


async def test_its_health_endpoints_answer() -> None:
    async with running(Summarizer) as summarizer:
        body = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"{summarizer.health_url}/ready", timeout=5).read()
        )
        assert json.loads(body)


async def test_its_data_folder_is_its_own_and_gone_afterwards(tmp_path: Path) -> None:
    async with running(Summarizer) as summarizer:
        folder = summarizer.agent.data_dir
        (folder / "file").touch()
    assert not folder.exists()
    async with running(Summarizer, data_dir=tmp_path / "kept") as summarizer:
        (summarizer.agent.data_dir / "file").touch()
    assert (tmp_path / "kept/file").exists()


async def test_many_run_side_by_side_and_leave_nothing() -> None:
    check = LeakCheck()
    for _ in range(3):
        async with running(Summarizer) as one, running(Summarizer, name="Second") as two:
            assert one.endpoint != two.endpoint
            await one.peer.summarize(text="x")
            await two.peer.summarize(text="x")
            assert two.agent.name == "Second"
    check.assert_none(within_s=2)


async def test_an_agent_that_does_not_come_up_raises_and_leaves_nothing() -> None:
    class Never(BaseAgent):
        async def on_start(self) -> None:
            raise OSError("no disk")

    check = LeakCheck()
    with pytest.raises(StartupError, match="OSError: no disk"):
        async with running(Never):
            pass
    check.assert_none(within_s=2)


async def test_a_test_that_fails_inside_still_stops_the_agent() -> None:
    check = LeakCheck()
    with pytest.raises(ZeroDivisionError):
        async with running(Summarizer) as summarizer:
            await summarizer.peer.summarize(text="x")
            raise ZeroDivisionError
    assert not summarizer.agent.running
    check.assert_none(within_s=2)
