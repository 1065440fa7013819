"""Traces over real sockets: through handlers on the loop and on threads, through streams, and not at all where nobody samples."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq

from agentkit import BaseAgent, BlockingClient, CallError, Client, NotFound, rpc
from agentkit.agent.builtin import SPANS
from agentkit.observe import log
from agentkit.testing import Running, running
from agentkit.transport.inbox import Inbox
from tests.agentkit.support import eventually, raw

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Last(BaseAgent):
    @rpc
    async def end(self, fail: bool = False) -> str:
        self.logger.warning("reached")
        if fail:
            raise NotFound("as asked")
        return "end"

    @rpc
    async def count(self, up_to: int) -> AsyncIterator[int]:
        for n in range(up_to):
            yield n

    @rpc
    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    @rpc
    async def held(self) -> None:
        await asyncio.Event().wait()


class Middle(BaseAgent):
    @rpc
    async def on_loop(self, fail: bool = False) -> str:
        return str(await asyncio.create_task(self.call("Last", "end", {"fail": fail})))

    @rpc
    def on_thread(self) -> str:
        return str(self.blocking.call("Last", "end"))

    @rpc
    async def both(self) -> list[str]:
        return list(await asyncio.gather(self.call("Last", "end"), self.call("Last", "end")))

    @rpc
    async def reads(self, up_to: int, leave_at: int) -> int:
        seen = 0
        async for n in self.stream("Last", "count", {"up_to": up_to}):
            seen += 1
            if n == leave_at:
                break
        return seen

    @rpc
    def reads_on_thread(self) -> list[int]:
        return list(self.blocking.stream("Last", "count", {"up_to": 3}))

    @rpc
    async def gives(self) -> int:
        async def numbers() -> AsyncIterator[int]:
            yield 1
            yield 2

        return int(await self.call("Last", "total", {"numbers": numbers()}))

    @rpc
    async def gives_up(self) -> None:
        await self.call("Last", "held", timeout=0.05)

    @rpc
    async def leaves_work(self) -> None:
        async def later() -> None:
            await self.released.wait()
            await self.call("Last", "end")

        self.released = asyncio.Event()
        self.later = asyncio.create_task(later())


@asynccontextmanager
async def a_chain(trace_sample: float = 0) -> AsyncIterator[tuple[Running[Middle], Running[Last]]]:
    async with (
        running(Last) as last,
        running(Middle, peers={"Last": last.endpoint}, trace_sample=trace_sample) as middle,
    ):
        yield middle, last


async def spans_of(*agents: Running[Any]) -> list[dict[str, Any]]:
    """Those that are kept, by their start."""
    found = [span for agent in agents for span in await agent.call(SPANS)]
    return sorted(found, key=lambda span: (span["start_s"], span["kind"]))


def shape(spans: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(span["kind"], span["name"], span["code"]) for span in spans]


def is_one_line(spans: list[dict[str, Any]]) -> bool:
    """Whether each was called from the one before it, in one trace."""
    return len({span["trace_id"] for span in spans}) == 1 and all(
        span["parent_id"] == before["span_id"] for before, span in itertools.pairwise(spans)
    )


@pytest.mark.parametrize("method", ["on_loop", "on_thread"])
async def test_a_handlers_calls_carry_on_its_trace(method: str) -> None:
    async with a_chain() as (middle, last), Client(peers={"Middle": middle.endpoint}, trace_sample=1) as client:
        assert await client.call("Middle", method) == "end"
        spans = [span.to_wire() for span in client.tracer.spans] + await spans_of(middle, last)
        assert shape(spans) == [
            ("client", f"Middle.{method}", "ok"), ("server", method, "ok"),
            ("client", "Last.end", "ok"), ("server", "end", "ok"),
        ]  # fmt: skip
        assert is_one_line(spans)
        assert spans[0]["parent_id"] == ""
        assert spans[0]["duration_s"] >= spans[1]["duration_s"] >= spans[2]["duration_s"] >= spans[3]["duration_s"] > 0


async def test_scripts_and_their_threads_begin_traces_too() -> None:
    async with a_chain() as (_middle, last):

        def script() -> None:
            with BlockingClient(peers={"Last": last.endpoint}, trace_sample=1) as client:
                client.call("Last", "end")
                assert list(client.stream("Last", "count", {"up_to": 2})) == [0, 1]
                assert [span.code for span in client.tracer.spans] == ["ok", "ok"]

        await asyncio.to_thread(script)
        first, second = await spans_of(last)
        assert shape([first, second]) == [("server", "end", "ok"), ("server", "count", "ok")]
        assert first["trace_id"] != second["trace_id"]


async def test_two_calls_of_one_handler_are_its_children_and_not_each_others() -> None:
    async with a_chain() as (middle, last), Client(peers={"Middle": middle.endpoint}, trace_sample=1) as client:
        await client.call("Middle", "both")
        served, *calls = await spans_of(middle)
        assert [call["parent_id"] for call in calls] == [served["span_id"]] * 2
        assert {span["parent_id"] for span in await spans_of(last)} == {call["span_id"] for call in calls}


async def test_an_error_is_the_end_of_every_span_that_it_passed() -> None:
    async with a_chain() as (middle, last), Client(peers={"Middle": middle.endpoint}, trace_sample=1) as client:
        with pytest.raises(NotFound):
            await client.call("Middle", "on_loop", {"fail": True})
        assert [code for _, _, code in shape(await spans_of(middle, last))] == ["not_found"] * 3
        with pytest.raises(CallError):
            await client.call("Middle", "gives_up")
        await eventually(lambda: len(last.agent._wired.tracer.spans) == 2)
        *outer, held = [code for _, _, code in shape(await spans_of(middle, last))][3:]
        assert outer == ["deadline_exceeded"] * 2
        assert held in (
            "deadline_exceeded",
            "cancelled",
        )  # by its own deadline, or by the caller's word that its own has passed


@pytest.mark.parametrize(
    ("method", "arguments", "inner", "code"),
    [
        ("reads", {"up_to": 3, "leave_at": 9}, "count", "ok"),
        ("reads", {"up_to": 100_000, "leave_at": 1}, "count", "cancelled"),
        ("reads_on_thread", {}, "count", "ok"),
        ("gives", {}, "total", "ok"),
    ],
)
async def test_a_streams_spans_end_with_the_stream(method: str, arguments: Any, inner: str, code: str) -> None:
    async with a_chain() as (middle, last), Client(peers={"Middle": middle.endpoint}, trace_sample=1) as client:
        await client.call("Middle", method, arguments)
        await eventually(lambda: last.agent._wired.tracer.spans)
        spans = await spans_of(middle, last)
        assert shape(spans) == [("server", method, "ok"), ("client", f"Last.{inner}", code), ("server", inner, code)]
        assert is_one_line(spans)


async def test_calls_outside_of_handlers_begin_traces_as_often_as_the_settings_say() -> None:
    async with a_chain(trace_sample=1) as (middle, last):
        for _ in range(3):
            await middle.agent.call("Last", "end")
        assert len({span["trace_id"] for span in await spans_of(middle, last)}) == 3
    async with a_chain(trace_sample=0) as (middle, last):
        for _ in range(3):
            await middle.agent.call("Last", "end")
        assert await spans_of(middle, last) == []


async def test_a_handler_that_was_called_without_a_trace_begins_none(monkeypatch: pytest.MonkeyPatch) -> None:
    metas: list[Any] = []
    take = Inbox._on_request

    def noted(self: Inbox, peer: Any, request: Any, content: Any) -> None:
        metas.append(request.meta)
        take(self, peer, request, content)

    monkeypatch.setattr(Inbox, "_on_request", noted)
    async with a_chain(trace_sample=1) as (middle, last):
        await middle.call("on_loop")
        await middle.call("on_thread")
        assert metas == [{}, {}, {}, {}]  # not a byte
        assert await spans_of(middle, last) == []


async def test_what_a_handler_leaves_behind_is_not_of_its_trace() -> None:
    async with (
        a_chain(trace_sample=1) as (middle, _last),
        Client(peers={"Middle": middle.endpoint}, trace_sample=1) as client,
    ):
        await client.call("Middle", "leaves_work")
        middle.agent.released.set()
        await middle.agent.later
        served, called, *_ = await spans_of(middle)
        assert (called["parent_id"], called["trace_id"] == served["trace_id"]) == ("", False)


async def test_a_plain_request_may_say_its_traceparent() -> None:
    async with a_chain(trace_sample=0) as (middle, last):
        with raw(middle.endpoint, zmq.REQ) as req:
            for traceparent in (PARENT, "nonsense", 7):
                req.send(json.dumps({"action": "on_loop", "traceparent": traceparent}).encode())
                assert json.loads((await req.frames())[0])["result"] == "end"
        spans = await spans_of(middle, last)
        assert [span["trace_id"] for span in spans] == ["4bf92f3577b34da6a3ce929d0e0e4736"] * 3
        assert is_one_line(spans)
        assert middle.agent._wired.tracer.bad == 2
    async with a_chain(trace_sample=1) as (middle, last):  # who knows nothing of it is traced by lot
        with raw(middle.endpoint, zmq.REQ) as req:
            req.send(b'{"action": "on_loop"}')
            await req.frames()
        assert len(await spans_of(middle, last)) == 3


async def test_a_request_that_is_refused_has_a_span_that_says_so() -> None:
    async with running(Last) as last:
        dispatcher = last.agent._wired._dispatcher  # type: ignore[attr-defined]
        dispatcher._admission._async_gate.limit = 0
        dispatcher._admission._async_gate.room = 0
        async with Client(peers={"Last": last.endpoint}, trace_sample=1) as client:
            with pytest.raises(CallError):
                await client.call("Last", "end", attempts=1)
        assert shape(await spans_of(last)) == [("server", "end", "overloaded")]


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged, as agents write it."""
    handler, stream = log.LineHandler(), io.StringIO()
    handler.point(service="test", as_json=True, colours=False, stream=stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


async def test_log_lines_of_a_sampled_handler_say_its_span(written: io.StringIO) -> None:
    async with running(Last) as last:
        await last.call("end")
        async with Client(peers={"Last": last.endpoint}, trace_sample=1) as client:
            await client.call("Last", "end")
        (span,) = await spans_of(last)
    untraced, traced = (
        line for line in map(json.loads, written.getvalue().splitlines()) if line["message"] == "reached"
    )
    assert "trace_id" not in untraced
    assert (traced["trace_id"], traced["span_id"]) == (span["trace_id"], span["span_id"])
