"""A channel's side of AK1: the gate before WELCOME, moving, losing, deadlines, limits, signs of life."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq

from agentkit.errors import (
    CallError,
    DeadlineExceeded,
    Draining,
    HandlerError,
    InternalError,
    PeerLost,
    TooLarge,
    Unreachable,
    UnsupportedVersion,
)
from agentkit.resilience.deadline import Deadline
from agentkit.transport import context, vigil
from agentkit.transport.channel import Channel, State
from agentkit.transport.reader import Reader
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from agentkit.wire.shared import capability
from tests.agentkit.support import PATIENCE_S, an_inbox, echoes, eventually, identity, outcome


def ends_in(seconds: float = 5.0) -> float:
    return Deadline.after(seconds).at_s


def ask(channel: Channel, method: str = "m", *, within_s: float = 5.0, **arguments: Any) -> asyncio.Future[Any]:
    return channel.request(method, values.pack(arguments), ends_in(within_s), {})[1]


class Scripted:
    """A ROUTER that answers only what the test tells it to."""

    def __init__(self) -> None:
        self.sock = context.socket(zmq.ROUTER, max_frame_bytes=-1)
        self.endpoint = f"tcp://127.0.0.1:{self.sock.bind_to_random_port('tcp://127.0.0.1')}"
        self.received: asyncio.Queue[list[bytes]] = asyncio.Queue()
        self._reader = Reader(self.sock, self.received.put_nowait)
        self.routing_id = b""

    async def next(self) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            self.routing_id, header, *self.body = await self.received.get()
        return codec.decode(header)

    def send(self, *frames: bytes | memoryview | ak.Message) -> None:
        encoded = [f if isinstance(f, bytes | memoryview) else codec.encode(f) for f in frames]
        self.sock.send_multipart([self.routing_id, *encoded])
        self._reader.poke()

    async def welcome(self, **limits: int) -> None:
        assert type(await self.next()) is ak.Hello
        self.send(ak.Welcome(1, "x", "test/x", 0, (), ak.Limits(**limits)))  # type: ignore[arg-type]

    def close(self) -> None:
        self._reader.close()
        self.sock.close(linger=0)


@asynccontextmanager
async def a_script() -> AsyncIterator[tuple[Scripted, Channel]]:
    script = Scripted()
    channel = Channel("x", script.endpoint, identity("caller"))
    try:
        yield script, channel
    finally:
        channel.close()
        script.close()


async def test_no_request_leaves_before_welcome() -> None:
    async with a_script() as (script, channel):
        futures = [ask(channel, n=n) for n in range(3)]
        hello = await script.next()
        assert hello == ak.Hello(1, "caller", "test/caller", 0, (ak.BATCHES, *capability()), ak.Limits())
        await asyncio.sleep(0.05)
        assert script.received.empty()
        script.send(ak.Welcome(1, "x", "test/x", 0))
        for n, future in enumerate(futures):
            request = await script.next()
            assert (type(request), request.id) == (ak.Request, n + 1)
            script.send(ak.Reply(request.id, {}), script.body[0])
            assert await future == {"n": n}


async def test_hello_names_the_incarnation_that_is_expected() -> None:
    script = Scripted()
    channel = Channel("x", script.endpoint, identity("caller"), expected=9)  # type: ignore[arg-type]
    assert (await script.next()).incarnation == 9
    channel.close()
    script.close()


async def test_a_request_carries_the_budget_that_is_left() -> None:
    async with a_script() as (script, channel):
        future = ask(channel, within_s=30.0)
        await script.welcome()
        request = await script.next()
        assert 20_000 < request.budget_ms <= 30_000
        script.send(ak.Reply(1, {}), b"\xc0")
        assert await future is None


async def test_goaway_in_place_of_welcome_moves_the_calls_that_waited() -> None:
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.next()
        script.send(ak.GoAway("stopping", 0))
        error = await outcome(future)
        assert (type(error), error.retry_safe) == (Draining, True)
        assert channel.state is State.CLOSED


async def test_goaway_moves_calls_above_last_id_and_waits_for_the_others() -> None:
    async with a_script() as (script, channel):
        lower, upper = ask(channel, n=1), ask(channel, n=2)
        await script.welcome()
        await script.next()
        await script.next()
        script.send(ak.GoAway("stopping", 1))
        assert type(await outcome(upper)) is Draining
        assert not channel.is_usable
        assert not lower.done()
        script.send(ak.Reply(1, {}), values.pack("answered"))
        assert await lower == "answered"
        assert type(await script.next()) is ak.Bye
        assert channel.state is State.CLOSED


async def test_an_idle_channel_answers_goaway_by_bye() -> None:
    async with a_script() as (script, channel):
        await script.welcome()
        await eventually(lambda: channel.state is State.OPEN)
        script.send(ak.GoAway("stopping", 0))
        assert type(await script.next()) is ak.Bye


async def test_a_refused_version_is_told_to_every_call_that_waited() -> None:
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.next()
        script.send(ak.Error(0, "unsupported_version", "1 is not spoken here", True, {}))
        error = await outcome(future)
        assert (type(error), error.message) == (UnsupportedVersion, "1 is not spoken here")


async def test_a_connection_that_goes_before_welcome_moves_its_calls() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    channel = Channel("x", f"tcp://127.0.0.1:{listener.getsockname()[1]}", identity("caller"))
    future = ask(channel)
    accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
    accepted.close()
    listener.close()
    error = await outcome(future)
    assert (type(error), error.retry_safe) == (Draining, True)


async def test_nobody_listening_is_unreachable_and_retry_safe() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = await outcome(ask(Channel("x", f"tcp://127.0.0.1:{port}", identity("caller"))))
    assert (type(error), error.retry_safe) == (Unreachable, True)
    assert str(port) in error.message


async def test_a_connection_that_goes_after_a_request_loses_the_peer_at_once() -> None:
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.welcome()
        await script.next()
        script.close()
        began = time.monotonic()
        error = await outcome(future)
        took_s = time.monotonic() - began
        assert (type(error), error.retry_safe) == (PeerLost, False)
        print(f"lost after {took_s * 1e3:.1f} ms")
        assert took_s < PATIENCE_S


async def test_requests_that_had_not_left_when_the_connection_went_are_moved() -> None:
    async with a_script() as (script, channel):
        first = ask(channel)
        await script.welcome()
        await script.next()
        batched = [ask(channel, n=n) for n in range(3)]  # these leave at the end of the loop's turn
        channel._lose("its connection went")
        assert type(await outcome(first)) is PeerLost
        for future in batched:
            assert type(await outcome(future)) is Draining


async def test_a_request_that_finds_the_connection_gone_is_moved_not_lost() -> None:
    async with a_script() as (script, channel):
        await script.welcome()
        await eventually(lambda: channel.state is State.OPEN)
        script.close()
        time.sleep(0.05)  # the loop must not hear of it before the request is sent
        assert type(await outcome(ask(channel))) in (Draining, PeerLost)


async def test_answers_that_came_before_the_end_count() -> None:
    async with a_script() as (script, channel):
        futures = [ask(channel, n=n) for n in range(20)]
        await script.welcome()
        for n in range(20):
            await script.next()
            script.send(ak.Reply(n + 1, {}), values.pack(n))
        script._reader.close()
        script.sock.close(linger=1000)
        assert [await outcome(f) for f in futures] == list(range(20))


async def test_a_call_is_answered_once_and_late_answers_are_dropped() -> None:
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.welcome()
        await script.next()
        script.send(ak.Reply(1, {}), values.pack("first"))
        script.send(ak.Reply(1, {}), values.pack("second"))
        script.send(ak.Error(1, "not_found", "third", False, {}))
        script.send(ak.Reply(77, {}), values.pack("nobody's"))
        assert await future == "first"
        other = ask(channel)
        await script.next()
        script.send(ak.Reply(2, {}), values.pack("second call"))
        assert await other == "second call"


async def test_garbage_from_the_peer_is_skipped() -> None:
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.welcome()
        await script.next()
        for garbage in (b"", b"\xc1", b"\x93\x04", codec.encode(ak.Cancel(1))):
            script.send(garbage)
        script.send(ak.Reply(1, {}), b"\xc1")
        error = await outcome(future)
        assert (type(error), "no msgpack" in error.message) == (InternalError, True)


async def test_a_call_that_is_cancelled_sends_cancel_and_its_id_is_not_used_again() -> None:
    async with a_script() as (script, channel):
        id, _ = channel.request("m", b"\x80", ends_in(), {})
        await script.welcome()
        await script.next()
        channel.cancel(id)
        assert await script.next() == ak.Cancel(1)
        ask(channel)
        assert (await script.next()).id == 2
        assert channel.in_flight == 1


async def test_a_call_that_is_cancelled_while_it_waits_never_leaves() -> None:
    async with a_script() as (script, channel):
        id, _ = channel.request("m", b"\x80", ends_in(), {})
        ask(channel)
        channel.cancel(id)
        await script.welcome()
        assert (await script.next()).id == 2


async def test_a_deadline_ends_the_call_tells_the_peer_and_says_that_it_may_have_run() -> None:
    async with a_script() as (script, channel):
        await script.welcome()
        await eventually(lambda: channel.state is State.OPEN)
        future = ask(channel, within_s=0.5)
        assert type(await script.next()) is ak.Request
        error = await outcome(future)
        assert (type(error), error.retry_safe) == (DeadlineExceeded, False)
        assert isinstance(error, TimeoutError)
        assert await script.next() == ak.Cancel(1)


async def test_a_deadline_before_welcome_is_retry_safe() -> None:
    async with a_script() as (script, channel):
        await script.next()
        error = await outcome(ask(channel, within_s=0.05))
        assert (type(error), error.retry_safe) == (DeadlineExceeded, True)


async def test_time_that_is_up_before_sending_is_not_sent() -> None:
    async with a_script() as (script, channel):
        await script.welcome()
        await eventually(lambda: channel.state is State.OPEN)
        error = await outcome(ask(channel, within_s=0))
        assert (type(error), error.retry_safe) == (DeadlineExceeded, True)
        ask(channel)
        assert (await script.next()).id == 2


async def test_a_body_above_the_peers_limit_is_refused_by_the_sender() -> None:
    async with a_script() as (script, channel):
        early = ask(channel, big="x" * 2000)
        await script.welcome(frame_bytes=1000)
        error = await outcome(early)
        assert (type(error), error.details["limit_bytes"]) == (TooLarge, 1000)
        with pytest.raises(TooLarge, match="the peer takes 1,000"):
            ask(channel, big="x" * 2000)
        ask(channel)
        assert (await script.next()).id == 2


async def test_calls_above_the_peers_limit_wait_in_the_channel() -> None:
    async with a_script() as (script, channel):
        futures = [ask(channel, n=n) for n in range(5)]
        await script.welcome(in_flight=2)
        assert [(await script.next()).id for _ in range(2)] == [1, 2]
        await asyncio.sleep(0.02)
        assert script.received.empty()
        script.send(ak.Reply(2, {}), b"\x02")
        assert (await script.next()).id == 3
        channel.cancel(1)
        assert type(await script.next()) is ak.Cancel
        assert (await script.next()).id == 4
        assert await futures[1] == 2


async def test_ping_is_answered_pong() -> None:
    async with a_script() as (script, _):
        await script.welcome()
        script.send(ak.Ping(5))
        assert await script.next() == ak.Pong(5)


async def test_a_silent_peer_is_pinged_and_then_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(vigil, "LOST_AFTER_S", 1.0)
    async with a_script() as (script, channel):
        future = ask(channel, within_s=30)
        await script.welcome()
        await script.next()
        for _ in range(3):
            ping = await script.next()
            assert type(ping) is ak.Ping
            script.send(ak.Pong(ping.id))
        assert not future.done()
        error = await outcome(future)
        assert (type(error), "silent" in error.message) == (PeerLost, True)


async def test_a_peer_that_let_a_deadline_pass_is_asked_on_and_given_up_with_what_it_has_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vigil, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(vigil, "LOST_AFTER_S", 0.3)
    async with a_script() as (script, channel):
        future = ask(channel, within_s=0.02)
        await script.welcome()
        assert type(await outcome(future)) is DeadlineExceeded
        assert channel.in_flight == 0
        await eventually(lambda: channel.state is State.CLOSED)


async def test_a_peer_that_answers_late_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(vigil, "LOST_AFTER_S", 5.0)
    async with a_script() as (script, channel):
        future = ask(channel, within_s=0.02)
        await script.welcome()
        assert type(await outcome(future)) is DeadlineExceeded
        script.send(ak.Reply(1, {}), b"\xc0")
        await eventually(lambda: not channel._vigil.is_kept)
        assert channel.state is State.OPEN


async def test_an_idle_channel_pings_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "PING_AFTER_S", 0.02)
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.welcome()
        await script.next()
        script.send(ak.Reply(1, {}), b"\xc0")
        await future
        await asyncio.sleep(0.1)
        pings = script.received.qsize()
        assert pings <= 1
        assert not channel._vigil.is_kept


async def test_leaving_takes_the_last_answers_then_says_bye() -> None:
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.welcome()
        await script.next()
        channel.leave()
        assert not channel.is_usable
        script.send(ak.Reply(1, {}), b"\x07")
        assert await future == 7
        assert type(await script.next()) is ak.Bye


async def test_closing_ends_calls_by_peer_lost_and_says_bye() -> None:
    async with a_script() as (script, channel):
        future = ask(channel)
        await script.welcome()
        await script.next()
        ended: list[Channel] = []
        channel._on_end = ended.append
        channel.close()
        channel.close()
        assert type(await outcome(future)) is PeerLost
        assert type(await script.next()) is ak.Bye
        assert ended == [channel]


async def test_each_caller_gets_an_error_of_its_own() -> None:
    async with a_script() as (script, channel):
        futures = [ask(channel) for _ in range(2)]
        await script.welcome()
        for _ in futures:
            await script.next()
        channel.close(PeerLost("gone", details={"why": "test"}))
        first, second = [await outcome(f) for f in futures]
        assert first is not second
        assert first.details == {"why": "test"}


async def test_the_directorys_word_ends_a_channel_without_waiting_for_its_connection() -> None:
    async with a_script() as (script, channel):
        sent = ask(channel)
        await script.welcome(in_flight=1)
        await script.next()
        waiting = ask(channel)
        channel.close(PeerLost("replaced by its next incarnation"))
        assert type(await outcome(sent)) is PeerLost
        assert type(await outcome(waiting)) is Draining


async def test_errors_arrive_as_their_classes_with_details() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        recorder.on_request = lambda inbound: inbox.refuse(inbound, HandlerError("no", details={"type": "KeyError"}))
        channel = Channel("x", endpoint, identity("caller"))
        error = await outcome(ask(channel))
        channel.close()
        assert (type(error), error.type, error.traceback) == (HandlerError, "KeyError", None)


async def test_channel_and_inbox_end_cleanly_under_goaway_with_calls_of_all_kinds() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        channel = Channel("x", endpoint, identity("caller"))
        running = ask(channel)
        inbound = await recorder.next()
        inbox.goaway()
        draining = asyncio.create_task(inbox.drained(Deadline.after(5)))
        await eventually(lambda: channel.state is State.LEAVING)
        inbox.answer(inbound, "finished")
        assert await running == "finished"
        assert await draining
        assert channel.state is State.CLOSED


async def test_thousands_of_calls_end_exactly_once_while_their_channel_is_closed_at_any_point() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        for n in range(60):
            channel = Channel("x", endpoint, identity("caller"))
            futures = [ask(channel, n=i) for i in range(30)]
            for _ in range(n % 20):
                await asyncio.sleep(0)
            if n % 3 == 0:
                await futures[n % 30]
            channel.close()
            for i, future in enumerate(futures):
                end = await outcome(future)
                assert end == {"n": i} or isinstance(end, CallError)
        await eventually(lambda: inbox.peers == ())
