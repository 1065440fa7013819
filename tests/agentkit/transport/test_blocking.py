"""Calls from threads: each has a channel of its own, which ends with it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from agentkit.agent.blocking import BlockingCaller
from agentkit.directory.base import AgentRecord
from agentkit.errors import (
    BadRequest,
    CallCancelled,
    CallError,
    DeadlineExceeded,
    NotFound,
    PeerLost,
    TooLarge,
    Unreachable,
)
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.resilience.deadline import Deadline
from agentkit.transport.blocking import BlockingChannel
from agentkit.wire import envelope as ak
from agentkit.wire import shared, values
from tests.agentkit.support import an_inbox, echoes, eventually, identity

ID = AgentId(MachineName("test"), AgentName("Callee"))


def caller_of(endpoint: str, incarnation: int = 7, **timeouts_s: float) -> BlockingCaller:
    record = AgentRecord(
        id=ID, incarnation=Incarnation(incarnation), phase="ready", endpoints={"inbox-local": endpoint},
        timeouts_s=timeouts_s,
    )  # fmt: skip
    return BlockingCaller(identity("caller"), lambda _name, _deadline: (record,))


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return await asyncio.to_thread(function, *args, **kwargs)


async def test_one_call_after_another_uses_one_channel() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        caller = caller_of(endpoint)

        def calls() -> None:
            for n in range(200):
                assert caller.call("Callee", "m", {"n": n}) == {"n": n}

        await in_thread(calls)
        (peer,) = inbox.peers
        assert (peer.last_id, peer.says_bye) == (200, False)
        caller.close()
        await eventually(lambda: inbox.peers == ())


async def test_errors_arrive_as_their_classes() -> None:
    async with an_inbox(limits=ak.Limits(frame_bytes=1000)) as (inbox, recorder, endpoint):
        recorder.on_request = lambda inbound: inbox.refuse(inbound, NotFound("no", details={"id": 4}))
        caller = caller_of(endpoint)
        with pytest.raises(NotFound) as caught:
            await in_thread(caller.call, "Callee", "m")
        assert caught.value.details == {"id": 4}
        with pytest.raises(TooLarge):
            await in_thread(caller.call, "Callee", "m", {"big": "x" * 2000})
        with pytest.raises(BadRequest, match="does not travel"):
            await in_thread(caller.call, "Callee", "m", {"odd": object()})
        caller.close()


async def test_a_deadline_ends_the_call_cancels_the_handler_and_leaves_the_channel_usable() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        caller = caller_of(endpoint)

        def calls() -> Any:
            with pytest.raises(DeadlineExceeded) as caught:
                caller.call("Callee", "m", timeout=0.5)
            assert not caught.value.retry_safe
            return caller.call("Callee", "m")

        calling = asyncio.create_task(in_thread(calls))
        first = await recorder.next()
        await eventually(lambda: recorder.abandoned == [first])
        inbox.answer(await recorder.next(), "second")
        assert await calling == "second"
        assert len(inbox.peers) == 1
        caller.close()


async def test_the_methods_own_default_counts_where_the_caller_names_none() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        caller = caller_of(endpoint, m=60.0)
        calling = asyncio.create_task(in_thread(caller.call, "Callee", "m"))
        inbound = await recorder.next()
        assert inbound.budget_ms is not None
        assert 50_000 < inbound.budget_ms <= 60_000
        inbox.answer(inbound, 1)
        assert await calling == 1
        caller.close()


async def test_nobody_listening_is_unreachable() -> None:
    async with an_inbox() as (_, _, endpoint):
        pass
    caller = caller_of(endpoint)
    with pytest.raises(Unreachable):
        await in_thread(caller.call, "Callee", "m")
    caller.close()


async def test_a_call_did_not_run_where_the_peer_hangs_up_before_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    capability = shared.capability

    def late() -> tuple[str, ...]:
        time.sleep(0.05)  # between connect and HELLO: on loopback the end of the connection takes a fraction of it
        return capability()

    monkeypatch.setattr(shared, "capability", late)
    caller = caller_of(f"tcp://127.0.0.1:{port}")
    with pytest.raises(CallError) as caught:
        await in_thread(caller.call, "Callee", "m", attempts=1)
    assert caught.value.retry_safe
    caller.close()
    server.close()
    await server.wait_closed()


async def test_goaway_between_calls_moves_the_next_one() -> None:
    async with an_inbox() as (old, old_recorder, endpoint), an_inbox() as (new, new_recorder, new_endpoint):
        echoes(old, old_recorder)
        echoes(new, new_recorder)
        endpoints = [endpoint, endpoint, new_endpoint, new_endpoint]

        def lookup(_name: str, _deadline: Deadline) -> tuple[AgentRecord, ...]:
            at = endpoints.pop(0) if len(endpoints) > 1 else endpoints[0]
            return (AgentRecord(id=ID, incarnation=Incarnation(7), phase="ready", endpoints={"inbox-local": at}),)

        caller = BlockingCaller(identity("caller"), lookup)
        gone = threading.Event()

        def calls() -> Any:
            caller.call("Callee", "m", {"n": 1})
            gone.wait()
            return caller.call("Callee", "m", {"n": 2})

        calling = asyncio.create_task(in_thread(calls))
        await eventually(lambda: old.peers and old.peers[0].last_id == 1)
        old.goaway()
        gone.set()
        assert await calling == {"n": 2}
        assert [peer.last_id for peer in new.peers] == [1]
        caller.close()


async def test_a_peer_that_goes_while_it_asks_for_a_sign_of_life_is_lost_and_the_call_is_not_run_again() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):

        def call() -> Any:
            channel = BlockingChannel("x", endpoint, identity("caller"))
            try:
                return channel.request("m", b"\x80", Deadline.after(5))
            finally:
                channel.close()

        calling = asyncio.create_task(in_thread(call))
        await recorder.next()
        for _ in range(100):
            inbox._probe()
        inbox.close(linger_ms=100)
        with pytest.raises(PeerLost):
            await calling
        assert recorder.requests.empty()


async def test_channels_of_threads_that_ended_are_closed() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        caller = caller_of(endpoint)
        await in_thread(caller.call, "Callee", "m")
        before = psutil.Process().num_fds()

        async def short_lived(n: int) -> None:
            thread = threading.Thread(target=caller.call, args=("Callee", "m", {"n": n}))
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0.001)
            thread.join()

        for n in range(30):
            await short_lived(n)
        gc.collect()
        await eventually(lambda: len(inbox.peers) == 1)
        await eventually(lambda: psutil.Process().num_fds() <= before + 8)
        assert len(caller._all) == 1
        caller.close()


async def test_closing_spares_the_channel_of_a_call_under_way_and_refuses_new_ones() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        caller = caller_of(endpoint)
        calling = asyncio.create_task(in_thread(caller.call, "Callee", "m"))
        inbound = await recorder.next()
        caller.close()
        with pytest.raises(CallCancelled, match="closed"):
            await in_thread(caller.call, "Callee", "m")
        inbox.answer(inbound, "still answered")
        assert await calling == "still answered"
        await eventually(lambda: inbox.peers == ())


async def test_many_threads_share_a_caller() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        caller = caller_of(endpoint)

        def calls(k: int) -> None:
            for n in range(50):
                assert caller.call("Callee", "m", {"k": k, "n": n}) == {"k": k, "n": n}

        await asyncio.gather(*(_in_own_thread(calls, k) for k in range(8)))
        caller.close()
        await eventually(lambda: inbox.peers == ())
        assert values.unpack(b"\x01") == 1


async def _in_own_thread(function: Callable[[int], None], k: int) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function(k)
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.005)
    thread.join()
    assert not failures, failures
