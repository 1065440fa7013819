"""Who sends garbage is cut off; who sits beside them notices nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agentkit.transport import strikes
from agentkit.transport.channel import Channel
from agentkit.transport.inbox import Inbox
from agentkit.transport.strikes import MAX_STRIKES, reach
from agentkit.wire import values
from tests.agentkit.support import Raw, an_inbox, echoes, eventually, identity, raw
from tests.agentkit.transport.test_inbox import ends_in


@asynccontextmanager
async def an_inbox_with_a_good_caller() -> AsyncIterator[tuple[Inbox, Channel, str]]:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        channel = Channel("callee", endpoint, identity("good"))
        try:
            yield inbox, channel, endpoint
        finally:
            channel.close()


async def echo(channel: Channel, n: int) -> None:
    assert await channel.request("m", values.pack({"n": n}), ends_in(10), {})[1] == {"n": n}


async def bad(inbox: Inbox, caller: Raw, count: int) -> None:
    """Send `count` bad messages and see them counted."""
    before = inbox.bad_frames
    for _ in range(count):
        caller.send(b"\xc1", b"nonsense")
    await eventually(lambda: inbox.bad_frames == before + count)


async def test_the_connection_that_garbage_comes_from_is_cut_and_others_live_on() -> None:
    async with an_inbox_with_a_good_caller() as (inbox, channel, endpoint):
        await echo(channel, 1)
        with raw(endpoint) as stranger:
            await eventually(lambda: inbox._connections.open == 2)
            stranger.sock.reconnect_ivl = -1
            await bad(inbox, stranger, MAX_STRIKES - 1)
            assert inbox._connections.open == 2, "a few mistakes are answered, not punished"
            await bad(inbox, stranger, 1)
            await eventually(lambda: inbox._connections.open == 1)
            await echo(channel, 2)
        assert channel.is_usable


async def test_what_a_caller_has_running_ends_when_it_is_cut() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            running = await recorder.next()
            await bad(inbox, caller, MAX_STRIKES)
            await eventually(lambda: not inbox.peers)
            assert recorder.abandoned == [running]


async def test_what_still_comes_from_a_connection_that_was_cut_is_dropped_unread() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            for _ in range(MAX_STRIKES):
                caller.send(b"\xc1")
            for id in range(1, 200):
                caller.request(id)
            await eventually(lambda: inbox._connections.open == 0)
            inbox.safety_check()
            assert recorder.requests.empty()


async def test_mistakes_that_lie_far_apart_are_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strikes, "WINDOW_S", 0.0)
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            await bad(inbox, caller, 3 * MAX_STRIKES)
            assert inbox._connections.open == 1


async def test_a_descriptor_that_has_gone_to_somebody_else_is_left_alone() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            await bad(inbox, caller, 1)
            (record,) = inbox._strikes._records.values()
            record.address = ("192.0.2.1", 4711)  # as if the first strike had come over an earlier connection
            await bad(inbox, caller, MAX_STRIKES - 1)
            await bad(inbox, caller, 1)
            assert inbox._connections.open == 1


async def test_only_so_many_connections_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strikes, "MAX_KNOWN", 2)
    async with an_inbox() as (inbox, _, endpoint):
        for _ in range(4):
            with raw(endpoint) as caller:
                await bad(inbox, caller, 1)
        assert len(inbox._strikes._records) == 2


def test_a_number_that_is_no_socket_any_more_is_nobody_and_leaks_nothing() -> None:
    reading, writing = os.pipe()
    try:
        before = len(os.listdir("/proc/self/fd"))
        assert reach(reading, cut_if="anything") is None
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(reading)
        os.close(writing)
    assert reach(reading) is None
