"""Streams between processes when something dies: what came is kept, the rest is a typed error in time, nothing runs on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from agentkit.client import Client
from agentkit.errors import DeadlineExceeded, PeerLost
from tests.agentkit.support import in_time
from tests.faults.scratch import Scratch, until

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = """
    from __future__ import annotations
    from collections.abc import AsyncIterator
    from agentkit import BaseAgent, rpc

    class Writes(BaseAgent):
        open = 0

        @rpc
        async def words(self, n: int, size: int = 10) -> AsyncIterator[str]:
            self.open += 1
            try:
                for i in range(n):
                    yield f"{i} " + "x" * size
            finally:
                self.open -= 1

        @rpc
        async def add(self, numbers: AsyncIterator[int]) -> int:
            self.open += 1
            try:
                return sum([n async for n in numbers])
            finally:
                self.open -= 1

        @rpc
        async def running(self) -> int:
            return self.open
"""


@pytest.fixture
def writes(fleet: Scratch) -> Scratch:
    fleet.python("writes.py", AGENTS)
    fleet.write({"Writes": {"agent": "writes:Writes"}})
    fleet.up()
    return fleet


def node_of(fleet: Scratch) -> Client:
    return Client(node=str(fleet.place("m").control))


async def test_a_peer_killed_in_the_middle_of_a_stream_is_lost_and_what_came_before_counts(writes: Scratch) -> None:
    before = writes.rows()["Writes"]
    assert before.pid is not None
    async with node_of(writes) as client:
        seen = 0
        with pytest.raises(PeerLost):
            async for _ in client.stream("Writes", "words", {"n": 10**9}, timeout=30):
                seen += 1
                if seen == 100:
                    os.kill(before.pid, signal.SIGKILL)
        assert seen >= 100
        after = await asyncio.to_thread(writes.wait_restarted, "Writes", before)
        assert after.pid is not None
        has_begun = asyncio.Event()

        async def numbers() -> AsyncIterator[int]:
            while True:
                has_begun.set()
                yield 1
                await asyncio.sleep(0)

        adding = asyncio.create_task(client.call("Writes", "add", {"numbers": numbers()}, timeout=30))
        await has_begun.wait()
        os.kill(after.pid, signal.SIGKILL)
        with pytest.raises(PeerLost):
            await adding


async def test_a_caller_that_dies_in_the_middle_of_a_stream_ends_its_handler(writes: Scratch) -> None:
    reading = writes.begin(
        sys.executable, "-m", "startup", "call", "Writes", "words", "n=1000000000", "--stream", "--timeout", "60"
    )
    assert reading.stdout is not None
    assert reading.stdout.readline().startswith("0 ")
    async with node_of(writes) as client:
        assert await client.call("Writes", "running") == 1
        reading.kill()
        reading.communicate()
        while await client.call("Writes", "running"):
            await asyncio.sleep(0.02)


async def test_a_peer_that_is_stopped_in_the_middle_of_a_stream_ends_it_at_the_deadline(writes: Scratch) -> None:
    pid = writes.rows()["Writes"].pid
    assert pid is not None
    async with node_of(writes) as client:

        async def read() -> None:
            async for word in client.stream("Writes", "words", {"n": 10**9, "size": 10_000}, timeout=1.5):
                if word.startswith("5 "):
                    os.kill(pid, signal.SIGSTOP)

        try:
            assert [type(end) for end in await in_time([read()], 1.5)] == [DeadlineExceeded]
        finally:
            os.kill(pid, signal.SIGCONT)
        while await client.call("Writes", "running"):
            await asyncio.sleep(0.02)


def test_a_stream_on_the_command_line(writes: Scratch) -> None:
    assert writes.run("call", "Writes", "words", "n=3", "size=1", "--stream").out == "0 x\n1 x\n2 x\n"
    lines = writes.run("call", "Writes", "words", "n=2", "size=1", "--stream", "--json").out.splitlines()
    assert [json.loads(line) for line in lines] == [{"result": "0 x"}, {"result": "1 x"}]
    refused = writes.run("call", "Writes", "words", "n=3")
    assert (refused.code, "--stream" in refused.err) == (1, True)
    until(lambda: writes.run("call", "Writes", "running").out == "0\n")
