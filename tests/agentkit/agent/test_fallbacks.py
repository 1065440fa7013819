"""What a call returns where no answer came."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import pytest

from agentkit import (
    LAST_ANSWER,
    AgentUnknown,
    BaseAgent,
    BlockingClient,
    Client,
    ConfigError,
    DeadlineExceeded,
    HandlerError,
    NotFound,
    Unreachable,
    fallback,
    rpc,
)
from agentkit.testing import running


class Summarizer(BaseAgent):
    @rpc
    async def summarize(self, text: str) -> str:
        if text == "nothing":
            raise NotFound("nothing to say")
        return f"short {text}"

    @rpc
    async def first(self, data: bytes) -> bytes:
        return bytes(data[:1])

    @rpc
    async def slow(self) -> None:
        await asyncio.sleep(30)


class Editor(BaseAgent):
    """Has an answer of its own where the Summarizer has none."""

    @fallback("Summarizer", "summarize")
    async def first_words(self, text: str) -> str:
        if text == "worse":
            raise ValueError("no words at all")
        return text[:4]

    @rpc
    async def edit(self, text: str) -> Any:
        return await self.call("Summarizer", "summarize", {"text": text}, attempts=1)

    @rpc
    def edit_in_thread(self, text: str) -> Any:
        return self.blocking.call("Summarizer", "summarize", {"text": text}, attempts=1)

    @rpc
    async def own_words(self, text: str) -> Any:
        return await self.peer("Summarizer", attempts=1, fallback=lambda text: text.upper()).summarize(text=text)


async def gone() -> str:
    async with running(Summarizer) as summarizer:
        return summarizer.endpoint


async def test_a_declared_fallback_answers_where_nobody_does() -> None:
    async with running(Editor, peers={"Summarizer": await gone()}) as editor:
        assert await editor.peer.edit(text="a long story") == "a lo"
        assert await editor.peer.edit_in_thread(text="a long story") == "a lo"
        assert await editor.peer.own_words(text="mine") == "MINE", "what the call says goes before it"
        with pytest.raises(HandlerError, match="no words at all"):
            await editor.peer.edit(text="worse")
        for _ in range(8):  # until the breaker is open, and after it
            assert await editor.peer.edit(text="a long story") == "a lo"
        text = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"{editor.health_url}/metrics", timeout=5).read().decode()
        )
        assert 'agent_call_fallbacks_total{agent="Editor",peer="Summarizer"} 12.0' in text
        assert 'agent_breaker_open{agent="Editor",instance="test/Summarizer"} 1.0' in text


async def test_what_a_handler_says_is_an_answer() -> None:
    async with (
        running(Summarizer) as summarizer,
        running(Editor, peers={"Summarizer": summarizer.endpoint}) as editor,
    ):
        assert await editor.peer.edit(text="a long story") == "short a long story"
        with pytest.raises(NotFound):
            await editor.peer.edit(text="nothing")


async def test_a_value_may_stand_in_for_an_answer() -> None:
    async with Client(peers={"Summarizer": await gone()}) as client:
        for value in (None, 7, "text", {"a": [1]}):
            assert await client.call("Summarizer", "summarize", {"text": "x"}, attempts=1, fallback=value) == value
        assert await client.call("Nobody", "m", fallback=3) == 3
        with pytest.raises(AgentUnknown):
            await client.call("Nobody", "m")
    async with running(Summarizer) as summarizer:
        assert await summarizer.call("slow", timeout=0.05, fallback="late") == "late"
        with pytest.raises(DeadlineExceeded):
            await summarizer.call("slow", timeout=0.05)


async def test_the_last_answer_to_the_same_question_may_stand_in() -> None:
    async with running(Summarizer) as summarizer:
        client = Client(peers={"Summarizer": summarizer.endpoint})
        await client.__aenter__()

        async def ask(text: str) -> Any:
            return await client.call("Summarizer", "summarize", {"text": text}, attempts=1, fallback=LAST_ANSWER)

        assert await ask("a") == "short a"
    assert await ask("a") == "short a"
    with pytest.raises(Unreachable):
        await ask("b")
    with pytest.raises(Unreachable):
        await ask("large" * 10_000)
    await client.__aexit__(None, None, None)


async def test_large_questions_are_told_apart_by_what_is_in_them() -> None:
    async with running(Summarizer) as summarizer:
        client = Client(peers={"Summarizer": summarizer.endpoint})
        await client.__aenter__()

        async def ask(data: bytes) -> Any:
            return await client.call("Summarizer", "first", {"data": data}, attempts=1, fallback=LAST_ANSWER)

        assert await ask(b"a" * 100_000) == b"a"
    assert await ask(b"a" * 100_000) == b"a"
    with pytest.raises(Unreachable):
        await ask(b"b" * 100_000)
    await client.__aexit__(None, None, None)


async def test_blocking_calls_have_fallbacks_too() -> None:
    endpoint = await gone()

    def calls() -> None:
        with BlockingClient(peers={"Summarizer": endpoint}) as client:
            assert client.call("Summarizer", "summarize", {"text": "x"}, attempts=1, fallback=5) == 5
            peer = client.peer("Summarizer", attempts=1, fallback=lambda text: text * 2)
            assert peer.summarize(text="x") == "xx"

    await asyncio.to_thread(calls)


def test_a_fallback_names_whom_it_stands_in_for() -> None:
    with pytest.raises(ConfigError, match="@fallback"):
        fallback("Summarizer", "")
