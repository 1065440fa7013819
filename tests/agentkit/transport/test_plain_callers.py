"""Plain REQ sockets at an inbox: served, refused, and drained in a pause of theirs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgpack
import pytest
import zmq

from agentkit.errors import HandlerError
from agentkit.resilience.deadline import Deadline
from agentkit.transport import frames
from agentkit.transport.frames import PlainFrame
from agentkit.transport.inbox import Inbox
from agentkit.transport.plain import QUIET_S, PlainCallers, is_this_machine
from agentkit.wire import values
from agentkit.wire.envelope import Limits
from tests.agentkit.support import PATIENCE_S, Recorder, an_inbox, raw


def says_yes(inbox: Inbox, recorder: Recorder) -> None:
    recorder.on_request = lambda inbound: inbox.answer(inbound, "yes")


async def test_a_request_and_its_answer() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint, zmq.REQ) as caller:
            caller.send(json.dumps({"action": "Create", "title": "x", "request_id": 9, "source_agent": "Old"}).encode())
            inbound = await recorder.next()
            assert inbound.plain is not None
            assert (inbound.method, inbound.plain.arguments, inbound.budget_ms) == ("Create", {"title": "x"}, None)
            assert inbound.peer.name == "Old"
            inbox.answer(inbound, {"id": 1})
            assert json.loads((await caller.frames())[0]) == {"status": "success", "id": 1, "request_id": 9}
            assert inbox.peers == ()


async def test_a_request_in_msgpack_is_answered_in_msgpack() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        says_yes(inbox, recorder)
        with raw(endpoint, zmq.REQ) as caller:
            caller.send(msgpack.packb({"command": "ask", "request_id": b"\x00"}))
            assert msgpack.unpackb((await caller.frames())[0]) == {
                "status": "success", "result": "yes", "request_id": b"\x00",
            }  # fmt: skip


async def test_a_message_that_can_t_be_read_is_answered_and_counted_and_the_next_one_served() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        says_yes(inbox, recorder)
        with raw(endpoint, zmq.REQ) as caller:
            caller.send(b"what?")
            assert json.loads((await caller.frames())[0])["code"] == "bad_request"
            caller.send(msgpack.packb({"no": "verb", "request_id": 3}))
            assert msgpack.unpackb((await caller.frames())[0])["request_id"] == 3
            caller.send(b'{"action": "a"}', b"a frame too many")
            assert json.loads((await caller.frames())[0])["code"] == "bad_request"
            assert inbox.bad_frames == 3
            caller.send(b'{"action": "a"}')
            assert json.loads((await caller.frames())[0])["result"] == "yes"


async def test_an_answer_is_sent_once() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            caller.send(b"", b'{"action": "a"}')
            inbound = await recorder.next()
            inbox.answer(inbound, 1)
            inbox.answer(inbound, 2)
            inbox.refuse(inbound, HandlerError("3"))
            assert json.loads((await caller.frames())[1])["result"] == 1
            assert await caller.nothing_comes()


async def test_an_answer_over_the_limit_becomes_an_error() -> None:
    async with an_inbox(limits=Limits(frame_bytes=1000)) as (inbox, recorder, endpoint):
        recorder.on_request = lambda inbound: inbox.answer(inbound, "x" * 2000)
        with raw(endpoint, zmq.REQ) as caller:
            caller.send(b'{"action": "a", "request_id": 4}')
            answer = json.loads((await caller.frames())[0])
            assert (answer["status"], answer["code"], answer["request_id"]) == ("error", "too_large", 4)


async def test_an_answer_for_somebody_who_has_gone_harms_nobody() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            for _ in range(500):
                caller.send(b"", b'{"action": "a"}')
            orphans = [await recorder.next() for _ in range(500)]
        while inbox.lost_peers == 0:  # its pipe goes a moment after its connection
            inbox.answer(orphans.pop(), 1)
            await asyncio.sleep(0.01)
        says_yes(inbox, recorder)
        with raw(endpoint, zmq.REQ) as caller:
            caller.send(b'{"action": "a"}')
            assert json.loads((await caller.frames())[0])["result"] == "yes"


async def test_requests_on_one_socket_are_all_seen_until_the_last_is_answered() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            for n in (1, 2):
                caller.send(b"", json.dumps({"action": "a", "n": n}).encode())
            first, second = await recorder.next(), await recorder.next()
            inbox.answer(first, 1)
            inbox.goaway()
            assert not await inbox.drained(Deadline.after(0.05))
            inbox.answer(second, 2)
            assert await inbox.drained(Deadline.after(5))
            assert [json.loads((await caller.frames())[1])["result"] for _ in range(2)] == [1, 2]


async def test_a_plain_request_on_a_channel_does_not_take_the_channels_place() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        with raw(endpoint) as caller:
            await caller.hello()
            caller.request(1)
            inbound = await recorder.next()
            caller.send(b"", b'{"action": "a"}')
            assert json.loads((await caller.frames())[1])["code"] == "bad_request"
            inbox.answer(inbound, "served")
            assert values.unpack((await caller.frames())[1]) == "served"


# -- draining ---------------------------------------------------------------------------------------------------------


async def ask(caller: Any) -> dict[str, Any]:
    caller.send(b'{"action": "a"}')
    answer: dict[str, Any] = json.loads((await caller.frames())[0])
    return answer


async def test_a_draining_inbox_serves_plain_callers_until_they_pause_and_refuses_who_comes_later() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        says_yes(inbox, recorder)
        with raw(endpoint, zmq.REQ) as caller:
            assert (await ask(caller))["result"] == "yes"
            inbox.goaway()
            drained = asyncio.ensure_future(inbox.drained(Deadline.after(PATIENCE_S)))
            for _ in range(3):
                assert (await ask(caller))["result"] == "yes"
                assert not drained.done()
                await asyncio.sleep(QUIET_S / 5)
            assert await drained
            assert (await ask(caller))["code"] == "draining"


async def test_plain_callers_that_never_pause_hold_it_back_until_the_deadline_and_no_longer() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        says_yes(inbox, recorder)
        with raw(endpoint, zmq.REQ) as caller:
            await ask(caller)
            inbox.goaway()
            drained = asyncio.ensure_future(inbox.drained(Deadline.after(2 * QUIET_S)))
            served = 0
            while not drained.done():
                served += "result" in await ask(caller)
            assert served > 0
            assert (await ask(caller))["code"] == "draining"


async def test_a_plain_caller_that_was_quiet_already_is_not_waited_for() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        says_yes(inbox, recorder)
        with raw(endpoint, zmq.REQ) as caller:
            await ask(caller)
            inbox._plain._last_s -= 60
            inbox.goaway()
            assert await inbox.drained(Deadline.after(0.0))


# -- from other machines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("127.0.0.1", True), ("127.8.0.2", True), ("::1", True), ("::ffff:127.0.0.1", True), ("", True),
        ("192.0.2.7", False), ("::ffff:192.0.2.7", False), ("2001:db8::1", False), ("fe80::1%eth0", False), ("?", False),
    ],
)  # fmt: skip
def test_this_machine_is_loopback(address: str, is_here: bool) -> None:
    assert is_this_machine(address) == is_here


def test_the_address_of_a_req_socket_comes_with_its_empty_frame() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.REQ) as req:
        req.linger = 0
        req.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        req.send(b"hello")
        assert router.poll(PATIENCE_S * 1000)
        (_, empty, body), _ = frames.receive_routed(router)
        assert isinstance(empty, PlainFrame)
        assert (empty, empty.address, body) == (b"", "127.0.0.1", b"hello")


def test_a_plain_request_from_another_machine_is_refused_with_one_hint_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sent: list[dict[str, Any]] = []
    callers = PlainCallers("test/Callee", Limits(), lambda _, reply: sent.append(json.loads(reply[1])))
    header = PlainFrame()
    header.address = "192.0.2.7"
    for n in range(3):
        body = json.dumps({"action": "a", "request_id": n, "source_agent": "Far"}).encode()
        assert callers.take(b"id", [b"id", header, body], is_channel=False) is None
    assert [(answer["code"], answer["request_id"]) for answer in sent] == [("forbidden", n) for n in range(3)]
    assert not callers.are_busy
    (line,) = [r for r in caplog.records if "plain.refused" in r.getMessage()]
    assert "192.0.2.7" in str(vars(line))
    assert "agentkit.Client" in str(vars(line))
