"""Streams as authors write them: results that are yielded, arguments that are iterated, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from agentkit import BadRequest, BaseAgent, BlockingClient, DeadlineExceeded, HandlerError, NotFound, PeerLost, rpc
from agentkit.agent.caller import Caller
from agentkit.agent.handlers import methods_of
from agentkit.directory.static import StaticDirectory
from agentkit.errors import CallCancelled, ConfigError
from agentkit.testing import running
from tests.agentkit.support import eventually


class Writer(BaseAgent):
    """Yields, and reads."""

    def __init__(self) -> None:
        self.made = 0
        self.open = 0
        self.got: list[Any] = []

    @rpc
    async def count(self, up_to: int, size: int = 0) -> AsyncIterator[dict[str, Any]]:
        self.open += 1
        try:
            for n in range(up_to):
                self.made = n + 1
                yield {"n": n, "padding": bytes(size)}
        finally:
            self.open -= 1

    @rpc
    async def breaks(self, after: int) -> AsyncGenerator[int, None]:
        for n in range(after):
            yield n
        raise NotFound("that was all")

    @rpc
    async def lies(self) -> AsyncIterator[int]:
        yield "text"  # type: ignore[misc]

    @rpc
    async def total(self, numbers: AsyncIterator[int], factor: int = 1) -> int:
        self.open += 1
        try:
            async for number in numbers:
                self.got.append(number)
        finally:
            self.open -= 1
        return factor * sum(self.got)

    @rpc
    async def first(self, numbers: AsyncIterator[int]) -> int:
        return int(await anext(numbers))

    @rpc
    async def doubled(self, numbers: AsyncIterator[int]) -> AsyncIterator[int]:
        async for number in numbers:
            yield 2 * number

    @rpc
    async def echo(self, x: int) -> int:
        return x


class Asker(BaseAgent):
    pass


@asynccontextmanager
async def a_pair() -> AsyncIterator[tuple[Writer, Asker]]:
    async with running(Writer) as writing, running(Asker, peers={"Writer": writing.endpoint}) as asking:
        yield writing.agent, asking.agent


async def numbers(up_to: int) -> AsyncIterator[int]:
    for n in range(up_to):
        yield n


async def test_results_arrive_one_after_another_and_end() -> None:
    async with a_pair() as (writer, asker):
        seen = [result["n"] async for result in asker.peer("Writer").count(up_to=1000)]
        assert seen == list(range(1000))
        assert [r["n"] async for r in asker.stream("Writer", "count", {"up_to": 3})] == [0, 1, 2]
        assert [r async for r in asker.peer("Writer").count(up_to=0)] == []
        assert writer.open == 0


async def test_a_call_of_a_peer_is_a_coroutine_for_whoever_awaits_it() -> None:
    async with a_pair() as (_writer, asker):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(asker.peer("Writer").echo(x=1))
        assert task.result() == 1
        assert await asyncio.gather(*(asker.peer("Writer").echo(x=n) for n in range(3))) == [0, 1, 2]


async def test_a_slow_reader_holds_the_writer_back() -> None:
    async with a_pair() as (writer, asker):
        stream = asker.peer("Writer").count(up_to=1000, size=100_000).__aiter__()
        assert (await anext(stream))["n"] == 0
        before = -1
        while before != writer.made:  # until it does not get any further
            before = writer.made
            await asyncio.sleep(0.05)
        assert writer.made < 30, "a window is 1 MiB: about ten of these"
        rest = [result["n"] async for result in stream]
        assert (rest[-1], writer.made) == (999, 1000)


async def test_leaving_the_loop_ends_the_handler() -> None:
    async with a_pair() as (writer, asker):
        async for result in asker.peer("Writer").count(up_to=10**9):
            if result["n"] == 10:
                break
        await eventually(lambda: writer.open == 0)
        async with asker.stream("Writer", "count", {"up_to": 10**9}) as kept:
            assert (await anext(kept))["n"] == 0
        await eventually(lambda: writer.open == 0)
        with pytest.raises(StopAsyncIteration):
            await anext(kept)


async def test_cancelling_the_reader_ends_the_handler() -> None:
    async with a_pair() as (writer, asker):

        async def read() -> None:
            async for _ in asker.peer("Writer").count(up_to=10**9, size=10_000):
                await asyncio.sleep(0)

        reading = asyncio.create_task(read())
        await eventually(lambda: writer.made > 10)
        reading.cancel()
        await asyncio.wait((reading,))
        assert reading.cancelled()
        await eventually(lambda: writer.open == 0)


async def test_an_error_comes_after_the_results_before_it() -> None:
    async with a_pair() as (_writer, asker):
        seen = []
        with pytest.raises(NotFound, match="that was all"):
            async for n in asker.peer("Writer").breaks(after=3):
                seen.append(n)
        assert seen == [0, 1, 2]
        with pytest.raises(HandlerError, match="annotation"):
            [n async for n in asker.peer("Writer").lies()]


async def test_a_stream_ends_at_its_deadline() -> None:
    async with a_pair() as (writer, asker):
        with pytest.raises(DeadlineExceeded):
            async for _ in asker.peer("Writer", timeout=0.2).count(up_to=10**9):
                await asyncio.sleep(0)
        await eventually(lambda: writer.open == 0)


async def test_a_stream_without_any_time_is_told_so_and_nothing_runs() -> None:
    async with a_pair() as (writer, asker):
        assert await asker.peer("Writer").echo(x=1) == 1  # the channel is open: the request could leave at once
        with pytest.raises(DeadlineExceeded):
            [r async for r in asker.stream("Writer", "count", {"up_to": 1}, timeout=0)]
        with pytest.raises(DeadlineExceeded):
            await asker.call("Writer", "total", {"numbers": numbers(1)}, timeout=0)
        assert writer.made == 0


async def test_a_stream_ends_with_a_typed_error_when_its_agent_stops() -> None:
    async with running(Asker) as asking, AsyncExitStack() as stack:
        writing = await stack.enter_async_context(running(Writer, grace_s=0.4))
        caller = Caller(asking.caller.me, StaticDirectory({"Writer": writing.endpoint}, here="test"))
        stack.callback(caller.close)
        stream = caller.stream("Writer", "count", {"up_to": 10**9, "size": 1000})
        await anext(stream)
        stopping = asyncio.create_task(stack.aclose())
        with pytest.raises((PeerLost, CallCancelled)):
            async for _ in stream:
                await asyncio.sleep(0)
        await stopping


async def test_an_argument_can_be_a_stream() -> None:
    async with a_pair() as (writer, asker):
        assert await asker.peer("Writer").total(numbers=numbers(500), factor=2) == 2 * sum(range(500))
        assert writer.got == list(range(500))


async def test_both_ways_at_once() -> None:
    async with a_pair() as (_writer, asker):
        assert [n async for n in asker.peer("Writer").doubled(numbers=numbers(300))] == [2 * n for n in range(300)]


async def test_a_handler_that_does_not_read_holds_the_sender_back_and_its_answer_ends_the_stream() -> None:
    sent = 0
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        nonlocal sent
        try:
            while True:
                yield sent
                sent += 1
        finally:
            closed.set()

    async with a_pair() as (_writer, asker):
        assert await asker.peer("Writer").first(numbers=endless()) == 0
        assert closed.is_set()
        assert sent < 100_000


async def test_what_the_callers_stream_raises_is_raised_at_the_caller_and_ends_the_handler() -> None:
    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise ZeroDivisionError

    async def wrong() -> AsyncIterator[object]:
        yield 1
        yield object()

    async with a_pair() as (writer, asker):
        for stream in (lambda: asker.peer("Writer").total(numbers=breaks()),):
            with pytest.raises(ZeroDivisionError):
                await stream()
        with pytest.raises(BadRequest, match="object"):
            await asker.peer("Writer").total(numbers=wrong())
        with pytest.raises(ZeroDivisionError):
            [n async for n in asker.peer("Writer").doubled(numbers=breaks())]
        await eventually(lambda: writer.open == 0)


async def test_a_wrong_value_of_the_callers_stream_is_a_bad_request() -> None:
    async def texts() -> AsyncIterator[object]:
        yield 1
        yield "two"

    async with a_pair() as (_writer, asker):
        with pytest.raises(BadRequest, match=r"total: numbers"):
            await asker.peer("Writer").total(numbers=texts())


@pytest.mark.parametrize(
    ("method", "arguments", "is_stream", "says"),
    [
        ("count", {"up_to": 1}, False, "async for"),
        ("echo", {"x": 1}, True, "await"),
        ("total", {}, False, "numbers wants a stream"),
        ("echo", {"x": numbers(1)}, False, "no parameter that takes a stream"),
        ("total", {"factor": numbers(1)}, False, "numbers wants a stream"),
        ("total", {"numbers": numbers(1), "factor": numbers(1)}, False, "are streams"),
    ],
)
async def test_who_streams_where_nobody_does_is_told(
    method: str, arguments: dict[str, Any], is_stream: bool, says: str
) -> None:
    async with a_pair() as (_writer, asker):
        with pytest.raises(BadRequest, match=says):
            if is_stream:
                [r async for r in asker.stream("Writer", method, arguments)]
            else:
                await asker.call("Writer", method, arguments)


def test_a_method_takes_one_stream_at_most() -> None:
    class Two(BaseAgent):
        @rpc
        async def merge(self, a: AsyncIterator[int], b: AsyncIterator[int]) -> int:
            return 0

    with pytest.raises(ConfigError, match="one AsyncIterator"):
        _ = methods_of(Two)["merge"].stream_parameter
    assert methods_of(Writer)["count"].describe()["streams"] is True
    assert methods_of(Writer)["total"].describe()["takes_stream"] == "numbers"
    assert methods_of(Writer)["count"].options.timeout_s == 60
    assert methods_of(Writer)["total"].options.timeout_s == 5


async def test_code_that_blocks_reads_streams_too_and_may_call_meanwhile() -> None:
    def read(endpoint: str) -> tuple[list[int], int]:
        with BlockingClient(peers={"Writer": endpoint}) as client:
            seen = []
            for result in client.stream("Writer", "count", {"up_to": 200, "size": 50_000}):
                seen.append(result["n"])
                if result["n"] == 100:
                    assert client.call("Writer", "echo", {"x": 5}) == 5
            assert seen == list(range(200))
            return seen, sum(client.stream("Writer", "breaks", {"after": 0}))

    async with running(Writer) as writing:
        with pytest.raises(NotFound):
            await asyncio.to_thread(read, writing.endpoint)


async def test_a_blocking_reader_that_is_slow_holds_the_writer_back_and_one_that_leaves_ends_it() -> None:
    def read(client: BlockingClient) -> Any:
        stream = client.stream("Writer", "count", {"up_to": 10**9, "size": 100_000})
        return next(stream), stream

    async with running(Writer) as writing:
        with BlockingClient(peers={"Writer": writing.endpoint}) as client:
            first, stream = await asyncio.to_thread(read, client)
            assert first["n"] == 0
            before = -1
            while before != writing.agent.made:
                before = writing.agent.made
                await asyncio.sleep(0.05)
            assert writing.agent.made < 30
            await asyncio.to_thread(stream.close)
            await eventually(lambda: writing.agent.open == 0)
