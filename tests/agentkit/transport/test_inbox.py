"""The inbox as a stranger's caller sees it: introductions, ids, limits, draining, garbage, peers that vanish."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq

from agentkit.errors import HandlerError, NotFound, PeerLost
from agentkit.resilience.deadline import Deadline
from agentkit.transport import outbox
from agentkit.transport import welcome as welcome_module
from agentkit.transport.channel import Channel
from agentkit.transport.peer import Peer
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from agentkit.wire.shared import capability
from tests.agentkit.support import PATIENCE_S, Raw, an_inbox, echoes, eventually, identity, raw


def ends_in(seconds: float = 5.0) -> float:
    return Deadline.after(seconds).at_s


# -- introductions ----------------------------------------------------------------------------------------------------


async def test_hello_is_answered_by_welcome_with_name_life_and_limits() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            welcome = await caller.hello(incarnation=7)
            assert welcome == ak.Welcome(1, "Callee", "test/Callee", 7, (ak.BATCHES, *capability()), inbox.limits)
            (peer,) = inbox.peers
            assert (peer.name, peer.instance, peer.says_bye) == ("raw", "test/raw", True)


async def test_a_request_before_hello_is_not_run_and_its_channel_is_sent_away() -> None:
    async with an_inbox() as (_, recorder, endpoint):
        with raw(endpoint) as caller:
            caller.request(1)
            assert await caller.message() == ak.GoAway("say HELLO first", 0)
            error = await caller.message()
            assert (error.id, error.code, error.retry_safe) == (1, "bad_request", True)
            assert recorder.requests.empty()


async def test_another_version_is_refused_with_a_reason() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            error = await caller.hello(version=2)
            assert (error.id, error.code) == (0, "unsupported_version")
            assert error.message == "AK1 version 2 is not spoken here, 1 is"
            assert inbox.peers == ()


@pytest.mark.parametrize("expected", [6, 8, 2**64 - 1])
async def test_hello_to_another_incarnation_is_answered_goaway(expected: int) -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            assert await caller.hello(incarnation=expected) == ak.GoAway("another incarnation", 0)
            assert inbox.peers == ()


async def test_channels_above_the_limit_are_refused_as_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(welcome_module, "MAX_PEERS", 1)
    async with an_inbox() as (_, _, endpoint):
        with raw(endpoint) as first, raw(endpoint) as second:
            assert type(await first.hello()) is ak.Welcome
            assert (await second.hello()).code == "overloaded"


async def test_a_caller_with_a_routing_id_of_its_own_that_comes_back_leaves_its_calls_behind() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            inbound = await recorder.next()
            assert type(await caller.hello()) is ak.Welcome
            assert recorder.abandoned == [inbound]
            inbox.answer(inbound, "late")
            caller.request(1)
            inbox.answer(await recorder.next(), "new")
            assert values.unpack((await caller.frames())[1]) == "new"


async def test_names_that_strangers_give_themselves_are_cut() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello(name="n" * 100_000, instance="i" * 100_000)
            (peer,) = inbox.peers
            assert len(peer.name) == len(peer.instance) == welcome_module.MAX_NAME


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_a_request_reaches_the_receiver_with_all_that_it_carries() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.send(ak.Request(5, "m", 700, 0, {"k": "v"}), values.pack({"a": 1}), b"one", b"two")
            inbound = await recorder.next()
            assert (inbound.id, inbound.method, inbound.budget_ms, inbound.meta) == (5, "m", 700, {"k": "v"})
            assert (values.unpack(inbound.body), inbound.attachments) == ({"a": 1}, [b"one", b"two"])
            inbox.answer(inbound, {"b": 2})
            header, body = await caller.frames()
            assert codec.decode(header) == ak.Reply(5, {})
            assert values.unpack(body) == {"b": 2}


async def test_a_request_without_a_body_has_no_arguments() -> None:
    async with an_inbox() as (_, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.send(ak.Request(1, "m", 700, 0, {}))
            assert values.unpack((await recorder.next()).body) == {}


async def test_a_request_is_answered_once_whatever_is_tried() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            inbound = await recorder.next()
            inbox.answer(inbound, "first")
            inbox.answer(inbound, "second")
            inbox.refuse(inbound, NotFound("third"))
            assert values.unpack((await caller.frames())[1]) == "first"
            assert await caller.nothing_comes()


@pytest.mark.parametrize("again", [1, 0, 4])
async def test_an_id_that_was_used_is_refused_and_does_not_run_twice(again: int) -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            for id in (1, 4):
                caller.request(id)
                inbox.answer(await recorder.next(), "ran")
                await caller.frames()
            caller.request(again)
            error = await caller.message()
            assert (error.id, error.code) == (again, "bad_request")
            assert recorder.requests.empty()
            assert inbox.bad_frames == 1


async def test_attachments_above_the_limit_are_refused() -> None:
    async with an_inbox(limits=ak.Limits(attachments=2)) as (_, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.send(ak.Request(1, "m", 700, 0, {}), b"\x80", b"1", b"2", b"3")
            assert (await caller.message()).code == "too_large"
            assert recorder.requests.empty()


async def test_calls_above_the_channels_limit_are_overloaded() -> None:
    async with an_inbox(limits=ak.Limits(in_flight=2)) as (_, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            for id in (1, 2, 3):
                caller.request(id)
            error = await caller.message()
            assert (error.id, error.code, error.retry_safe) == (3, "overloaded", True)


async def test_an_answer_above_the_callers_limit_is_an_error_instead() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello(limits=ak.Limits(frame_bytes=1000))
            caller.request(1)
            inbox.answer(await recorder.next(), "x" * 2000)
            error = await caller.message()
            assert (error.id, error.code, error.details["limit_bytes"]) == (1, "too_large", 1000)


async def test_an_error_leaves_whatever_its_author_put_into_it() -> None:
    odd = HandlerError(
        "file \udcff " + "x" * 100_000, details={1: dt.datetime.now(dt.UTC), "o": object(), "s": "\udcff", "b": 2**70}
    )
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            inbox.refuse(await recorder.next(), odd)
            error = await caller.message()
            assert (error.id, error.code) == (1, "handler_error")
            assert set(error.details) == {"1", "o", "s", "b"}


async def test_cancel_abandons_the_request_and_nothing_is_answered() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            inbound = await recorder.next()
            caller.send(ak.Cancel(1))
            caller.send(ak.Cancel(99))
            await eventually(lambda: recorder.abandoned == [inbound])
            inbox.answer(inbound, "late")
            assert await caller.nothing_comes()


async def test_bye_abandons_what_still_runs_and_forgets_the_channel() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            inbound = await recorder.next()
            caller.send(ak.Bye())
            await eventually(lambda: inbox.peers == ())
            assert recorder.abandoned == [inbound]


async def test_ping_is_answered_pong() -> None:
    async with an_inbox() as (_, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.send(ak.Ping(33))
            assert await caller.message() == ak.Pong(33)


# -- draining ---------------------------------------------------------------------------------------------------------


async def test_goaway_tells_every_channel_its_last_id_and_what_runs_is_finished() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as busy, raw(endpoint) as idle:
            await busy.hello()
            await idle.hello()
            busy.request(3)
            inbound = await recorder.next()
            inbox.goaway("stopping")
            inbox.goaway("stopping")
            assert await busy.message() == ak.GoAway("stopping", 3)
            assert await idle.message() == ak.GoAway("stopping", 0)
            busy.request(4)
            refusal = await busy.message()
            assert (refusal.id, refusal.code, refusal.retry_safe) == (4, "draining", True)
            inbox.answer(inbound, "done")
            assert values.unpack((await busy.frames())[1]) == "done"
            assert not await inbox.drained(Deadline.after(0.05)), "neither has said BYE"
            busy.send(ak.Bye())
            idle.send(ak.Bye())
            draining = asyncio.create_task(inbox.drained(Deadline.after(5)))
            await eventually(lambda: inbox.peers == ())
            busy.close()
            idle.close()
            assert await draining


async def test_hello_while_draining_is_answered_goaway() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        inbox.goaway()
        with raw(endpoint) as caller:
            assert await caller.hello(incarnation=7) == ak.GoAway("stopping", 0)


async def test_a_caller_that_reads_only_in_calls_is_not_waited_for_when_idle() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello(capabilities=(ak.READS_ONLY_IN_CALLS,))
            inbox.goaway()
            assert await inbox.drained(Deadline.after(5))


async def test_draining_ends_at_its_deadline_when_a_caller_never_says_bye() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            inbox.goaway()
            began = time.monotonic()
            assert not await inbox.drained(Deadline.after(0.1))
            assert time.monotonic() - began < PATIENCE_S


async def test_a_connection_that_has_not_said_hello_is_given_a_moment() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            await eventually(lambda: inbox._connections.open == 1)
            inbox.goaway()
            draining = asyncio.create_task(inbox.drained(Deadline.after(5)))
            assert await caller.hello() == ak.GoAway("stopping", 0)
            assert not draining.done()
            caller.close()
            assert await draining


# -- peers that vanish or are slow ------------------------------------------------------------------------------------


async def test_a_caller_that_vanishes_is_forgotten_and_its_work_abandoned() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller, raw(endpoint) as other:
            await caller.hello()
            await other.hello()
            caller.request(1)
            inbound = await recorder.next()
            caller.close()
            await eventually(lambda: recorder.abandoned == [inbound])
            assert len(inbox.peers) == 1
            assert await other.message() == ak.Ping(0)


async def test_looking_for_vanished_callers_does_not_pile_up_pings_for_one_that_does_not_read() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as idle:
            await idle.hello(capabilities=(ak.READS_ONLY_IN_CALLS,))
            idle._reader.close()
            for _ in range(5000):
                inbox._probe()
            with raw(endpoint) as passing:
                await passing.hello()
            await eventually(lambda: len(inbox.peers) == 1)
            (peer,) = inbox.peers
            assert not peer.backlog
            assert inbox._outbox._timer is None


@pytest.mark.parametrize("says", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f", b"\xff"])
async def test_connections_that_never_become_one_are_counted_out_once(says: bytes) -> None:
    async with an_inbox() as (inbox, _, endpoint):
        port = int(endpoint.rsplit(":", 1)[1])
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as scan:
                if says:
                    scan.send(says)
        with raw(endpoint) as caller:
            await caller.hello()
            await eventually(lambda: inbox._connections.open == 1)


async def test_a_slow_readers_answers_wait_in_order_and_arrive() -> None:
    count = 4500  # libzmq's two queues hold 1,000 each, the kernel up to 1,000
    async with an_inbox() as (inbox, recorder, endpoint):
        caller = Raw(endpoint)
        try:
            await caller.hello()
            recorder.on_request = lambda inbound: inbox.answer(inbound, bytes(10_000))
            caller._reader.close()  # from here on it reads nothing
            for id in range(1, count + 1):
                caller.sock.send_multipart([codec.encode(ak.Request(id, "m", 60_000, 0, {})), b"\x80"])
                if id % 50 == 0:
                    await asyncio.sleep(0)
            (peer,) = inbox.peers
            await eventually(lambda: peer.last_id == count and bool(peer.backlog))
            got: list[int] = []
            while len(got) < count:
                try:
                    got.append(codec.decode(caller.sock.recv_multipart(zmq.NOBLOCK)[0]).id)
                except zmq.Again:
                    await asyncio.sleep(0.001)
            assert got == list(range(1, count + 1))
            await eventually(lambda: not peer.backlog and inbox._outbox._timer is None)
        finally:
            caller.close()


async def test_large_answers_wait_here_and_not_in_libzmqs_queue() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        caller = Raw(endpoint, rcvhwm=1)
        try:
            await caller.hello()
            recorder.on_request = lambda inbound: inbox.answer(inbound, b"x" * 1_000_000)
            caller._reader.close()
            for id in range(1, 61):
                caller.sock.send_multipart([codec.encode(ak.Request(id, "m", 60_000, 0, {})), b"\x80"])
            (peer,) = inbox.peers
            await eventually(lambda: peer.last_id == 60)
            assert 16 * 2**20 <= sum(size for _, size in peer.held) < 17_100_000 + 2**20
            assert peer.backlog_bytes > 30_000_000
            got: list[int] = []
            while len(got) < 60:
                try:
                    got.append(codec.decode(caller.sock.recv_multipart(zmq.NOBLOCK)[0]).id)
                except zmq.Again:
                    await asyncio.sleep(0.001)
            assert got == list(range(1, 61))
            await eventually(lambda: not peer.backlog and inbox._outbox._timer is None)
        finally:
            caller.close()


async def test_a_reader_that_reads_nothing_is_tried_less_and_less_often() -> None:
    async with an_inbox() as (inbox, _, endpoint):
        caller = Raw(endpoint)
        try:
            await caller.hello()
            caller._reader.close()
            (peer,) = inbox.peers
            while inbox._outbox._pause_s < 0.04:  # until nothing has moved three times in a row
                while not peer.backlog:
                    inbox._outbox.send(peer, [bytes(5_000)])
                await asyncio.sleep(0.002)
            tries = 0
            send = inbox._outbox.send

            def counted(to: Peer, message: list[bytes]) -> None:
                nonlocal tries
                tries += 1
                send(to, message)

            inbox._outbox.send = counted  # type: ignore[method-assign]
            await asyncio.sleep(0.6)
            assert 1 <= tries <= 6, "200 a second would be 120"
        finally:
            caller.close()


async def test_a_reader_that_is_too_slow_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BURST_BYTES", 1_000_000)
    async with an_inbox() as (inbox, recorder, endpoint):
        caller = Raw(endpoint)
        try:
            await caller.hello()
            caller._reader.close()
            caller.request(1)
            kept = await recorder.next()
            (peer,) = inbox.peers
            for _ in range(20_000):
                inbox._outbox.send(peer, [bytes(20_000)])
                if not inbox.peers:
                    break
            assert inbox.peers == ()
            assert peer.backlog_bytes < 1_100_000
            assert not peer.backlog
            assert recorder.abandoned == [kept]
            assert inbox.lost_peers == 1
        finally:
            caller.close()


async def test_a_channel_that_the_inbox_forgot_moves_its_calls_instead_of_failing_them() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        channel = Channel("x", endpoint, identity("caller"))
        _, future = channel.request("m", values.pack({"n": 1}), ends_in(), {})
        assert await future == {"n": 1}
        inbox._lose(inbox.peers[0])
        _, future = channel.request("m", values.pack({"n": 2}), ends_in(), {})
        with pytest.raises(Exception) as caught:
            await future
        assert caught.value.code == "draining"  # type: ignore[attr-defined]
        assert not channel.is_usable


async def test_an_answer_after_the_inbox_was_closed_goes_nowhere() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            inbound = await recorder.next()
    inbox.answer(inbound, "nobody reads this")


# -- garbage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "id"),
    [
        (b"\xc1", None),
        (b"\x93\x04", None),
        (msgpack.packb([3, 9, "m"]), 9),
        (msgpack.packb([77, 9]), 9),
        (msgpack.packb([4, 9, {}]), None),  # a REPLY is for callers
        (msgpack.packb([2, 0, 1, "a", "b", 1, [], {}]), None),
    ],
)
async def test_garbage_is_counted_and_answered_where_it_has_an_id(header: bytes, id: int | None) -> None:
    async with an_inbox() as (inbox, _, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.send(header)
            await eventually(lambda: inbox.bad_frames == 1)
            if id is None:
                assert await caller.nothing_comes()
            else:
                error = await caller.message()
                assert (error.id, error.code) == (id, "bad_request")
            caller.send(ak.Ping(1))
            assert await caller.message() == ak.Pong(1)


VECTORS = json.loads((Path(__file__).parents[1] / "wire/vectors/ak1.json").read_text())


def hostile_frames(count: int) -> list[list[bytes]]:
    """Random bytes, truncated and mutated headers, wrong types, empty and large frames; the same every time."""
    rng = random.Random(20260102)
    good = [bytes.fromhex(v["hex"]) for v in VECTORS["headers"]]
    bad = [bytes.fromhex(v["hex"]) for v in VECTORS["refused"]]

    def mutated() -> bytes:
        header = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            header[rng.randrange(len(header))] = rng.randrange(256)
        return bytes(header)

    def wrong_types() -> bytes:
        anything: list[Any] = [None, True, -1, 2**63, 1.5, "x", b"x", [], {}, {"a": [1]}, [[[]]], "y" * 1000]
        return bytes(msgpack.packb([rng.randint(0, 14), *(rng.choice(anything) for _ in range(rng.randint(0, 8)))]))

    makers = [
        lambda: [rng.randbytes(rng.randint(0, 200))],
        lambda: [(g := rng.choice(good))[: rng.randrange(len(g))]],
        lambda: [mutated(), rng.randbytes(rng.randint(0, 50))],
        lambda: [wrong_types(), rng.randbytes(rng.randint(0, 50))],
        lambda: [rng.choice(bad)],
        lambda: [b"", rng.randbytes(rng.randint(0, 100))],
        lambda: [b"", b'{"action": "' + b"z" * 1000],
        lambda: [b"", b"", b"", b""],
        lambda: [rng.choice(good), rng.randbytes(rng.choice([0, 10, 20_000]))] + [b"a"] * rng.randint(0, 80),
    ]
    return [rng.choice(makers)() for _ in range(count)]


@pytest.mark.slow
@pytest.mark.soak
async def test_ten_thousand_hostile_frames_cost_no_good_call_its_answer_and_no_memory(times: int) -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes_or_refuses = recorder

        def serve(inbound: Any) -> None:
            try:
                inbox.answer(inbound, values.unpack(inbound.body) if inbound.plain is None else {})
            except values.Undecodable as exc:
                inbox.refuse(inbound, HandlerError(str(exc)))

        echoes_or_refuses.on_request = serve
        channel = Channel("good", endpoint, identity("good"))
        latencies: dict[str, list[float]] = {"before": [], "during": []}

        async def call(n: int, when: str) -> None:
            began = time.perf_counter()
            _, future = channel.request("echo", values.pack({"n": n}), ends_in(10), {})
            assert await future == {"n": n}
            latencies[when].append(time.perf_counter() - began)

        frames = hostile_frames(10_000 * times)
        for n in range(300):
            await call(n, "before")
        attackers = [Raw(endpoint) for _ in range(4)]
        try:
            gc.collect()
            memory = psutil.Process().memory_info().rss
            for n, message in enumerate(frames):
                attackers[n % 4].send(*message)
                if n % 20 == 0:
                    await call(n, "during")
            before_s, after_s = (sorted(latencies[when])[int(len(latencies[when]) * 0.99)] for when in latencies)
            grown_mb = (psutil.Process().memory_info().rss - memory) / 2**20
            print(
                f"good calls' p99: {before_s * 1e3:.2f} ms before, {after_s * 1e3:.2f} ms during; "
                f"memory {grown_mb:+.1f} MB; bad frames {inbox.bad_frames}"
            )
            assert len(latencies["during"]) == 500 * times
            assert grown_mb < 20
            assert inbox.bad_frames > 3000
        finally:
            for attacker in attackers:
                attacker.close()
            channel.close()
        await eventually(lambda: inbox.peers == ())
    assert isinstance(PeerLost(), ConnectionError)
