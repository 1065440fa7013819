"""Encrypted inboxes: who comes in, who does not, and who has to go. Real sockets, real keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from agentkit.errors import CallError, Draining, PeerLost, Unauthenticated
from agentkit.resilience.deadline import Deadline
from agentkit.security.folder import KeyFolder
from agentkit.security.keys import Key, new_key
from agentkit.security.ring import Keyring
from agentkit.security.roles import Holder
from agentkit.transport import context, door
from agentkit.transport.blocking import BlockingChannel
from agentkit.transport.channel import Channel
from agentkit.transport.curve import Doorkeeper
from agentkit.transport.dealer import Dial
from agentkit.transport.inbox import Inbox
from agentkit.transport.peer import Inbound
from agentkit.wire import values
from tests.agentkit.support import PATIENCE_S, Recorder, echoes, eventually, identity


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path / "keys")
    made.add([new_key("ops", "operator"), new_key("main_pc", "agent"), new_key("pc2", "agent")])
    return made


class Guarded:
    """An inbox of main_pc with an encrypted and a plain address."""

    def __init__(self, folder: KeyFolder) -> None:
        self.folder = folder
        self.ring = Keyring.of_machine(folder, "main_pc")
        self.recorder = Recorder()
        self.inbox = Inbox(identity(incarnation=7), self.recorder, keys=self.ring)
        echoes(self.inbox, self.recorder)
        self.plain = self.inbox.bind("tcp://127.0.0.1:*")
        self.endpoint = self.inbox.bind("tcp://127.0.0.1:*", encrypted=True)

    def key(self, name: str) -> Key:
        key = self.folder.load().own(name)
        assert key is not None
        return key

    def dial(self, own: Key, server: str = "") -> Dial:
        return Dial(own, server or self.ring.own.public)

    def channel(self, own: Key, server: str = "") -> Channel:
        return Channel("main_pc/Callee", self.endpoint, identity("caller"), dial=self.dial(own, server))


@pytest.fixture
async def guarded(folder: KeyFolder) -> AsyncIterator[Guarded]:
    made = Guarded(folder)
    yield made
    made.inbox.close()
    assert not Doorkeeper._of, "who answers ZeroMQ's questions has outlived the inbox"


@asynccontextmanager
async def closing(channel: Channel) -> AsyncIterator[Channel]:
    try:
        yield channel
    finally:
        channel.close()


async def ask(channel: Channel, within_s: float = 10.0, **arguments: Any) -> Any:
    _, future = channel.request("m", values.pack(arguments), Deadline.after(within_s).at_s, {})
    return await asyncio.wait_for(future, PATIENCE_S)


async def test_a_known_key_calls_and_the_inbox_knows_whose_it_is(guarded: Guarded) -> None:
    seen: list[Holder | None] = []

    def answer(inbound: Inbound) -> None:
        seen.append(guarded.inbox.identity(inbound.peer))
        guarded.inbox.answer(inbound, values.unpack(inbound.body))

    guarded.recorder.on_request = answer
    async with closing(guarded.channel(guarded.key("ops"))) as channel:
        assert await ask(channel, x=1) == {"x": 1}
    async with closing(guarded.channel(guarded.key("pc2"))) as channel:
        assert await ask(channel, x=2) == {"x": 2}
    assert seen == [Holder("ops", "operator"), Holder("pc2", "agent")]


async def test_many_calls_at_once_come_by_an_encrypted_channel(guarded: Guarded) -> None:
    async with closing(guarded.channel(guarded.key("pc2"))) as channel:
        await ask(channel)
        assert await asyncio.gather(*(ask(channel, x=n) for n in range(500))) == [{"x": n} for n in range(500)]


async def test_the_plain_address_of_the_same_inbox_stays_plain_and_knows_nobody(guarded: Guarded) -> None:
    seen: list[Holder | None] = []
    guarded.recorder.on_request = lambda inbound: (
        seen.append(guarded.inbox.identity(inbound.peer)),
        guarded.inbox.answer(inbound, None),
    )
    async with closing(Channel("Callee", guarded.plain, identity("caller"))) as channel:
        await ask(channel)
    assert seen == [None]


async def test_an_unknown_key_is_unauthenticated_and_not_tried_again(guarded: Guarded) -> None:
    async with closing(guarded.channel(new_key("ops", "operator"))) as channel:
        with pytest.raises(Unauthenticated, match="does not accept our key") as caught:
            await ask(channel)
    assert not caught.value.retry_safe
    await eventually(lambda: guarded.inbox.turned_away == 1)
    assert guarded.recorder.requests.empty()


async def test_a_plain_caller_at_the_encrypted_address_is_unauthenticated(guarded: Guarded) -> None:
    async with closing(Channel("Callee", guarded.endpoint, identity("caller"))) as channel:
        with pytest.raises(Unauthenticated, match="takes encrypted connections only"):
            await ask(channel)
    await eventually(lambda: guarded.inbox.turned_away == 1)


async def test_a_plain_req_socket_at_the_encrypted_address_gets_nothing(guarded: Guarded) -> None:
    sock = context.socket(zmq.REQ, max_frame_bytes=-1)
    try:
        sock.connect(guarded.endpoint)
        sock.send(b'{"action": "m"}')
        await eventually(lambda: guarded.inbox.turned_away >= 1)
        assert guarded.recorder.requests.empty()
    finally:
        sock.close(linger=0)


async def test_an_encrypted_caller_does_not_speak_to_a_server_that_does_not_encrypt(guarded: Guarded) -> None:
    dial = guarded.dial(guarded.key("ops"))
    async with closing(Channel("Callee", guarded.plain, identity("caller"), dial=dial)) as channel:
        with pytest.raises(Unauthenticated, match="does not encrypt"):
            await ask(channel)


async def test_a_server_without_the_expected_key_gets_no_request(guarded: Guarded) -> None:
    async with closing(guarded.channel(guarded.key("ops"), server=guarded.key("pc2").public)) as channel:
        with pytest.raises(Draining, match="may not have the key that we expect"):
            await ask(channel)
    assert guarded.recorder.requests.empty()


async def test_a_blocking_caller_meets_the_same_door(guarded: Guarded) -> None:
    def call(dial: Dial | None) -> Any:
        channel = BlockingChannel("Callee", guarded.endpoint, identity("caller"), dial=dial)
        try:
            return channel.request("m", values.pack({"x": 1}), Deadline.after(10.0))
        finally:
            channel.close()

    assert await asyncio.to_thread(call, guarded.dial(guarded.key("ops"))) == {"x": 1}
    with pytest.raises(Unauthenticated, match="does not accept our key"):
        await asyncio.to_thread(call, guarded.dial(new_key("ops", "operator")))
    with pytest.raises(Unauthenticated, match="encrypted connections only"):
        await asyncio.to_thread(call, None)


async def test_who_is_revoked_while_connected_is_put_out_and_its_work_is_abandoned(guarded: Guarded) -> None:
    guarded.recorder.on_request = guarded.recorder.requests.put_nowait
    async with (
        closing(guarded.channel(guarded.key("pc2"))) as revoked,
        closing(guarded.channel(guarded.key("ops"))) as other,
    ):
        call = asyncio.ensure_future(ask(revoked))
        inbound = await guarded.recorder.next()
        kept = asyncio.ensure_future(ask(other, x=1))
        its = await guarded.recorder.next()
        guarded.folder.revoke({guarded.key("pc2").fingerprint: "pc2"})
        guarded.ring.reload()
        assert guarded.recorder.abandoned == [inbound]
        with pytest.raises(PeerLost):
            await call
        guarded.inbox.answer(its, "still there")
        assert await kept == "still there"
    assert guarded.inbox.identity(inbound.peer) is None


async def test_who_was_revoked_does_not_come_in_again(guarded: Guarded) -> None:
    key = guarded.key("pc2")
    guarded.folder.revoke({key.fingerprint: "pc2"})
    guarded.ring.reload()
    async with closing(guarded.channel(key)) as channel:
        with pytest.raises(Unauthenticated):
            await ask(channel)


async def test_a_revoked_peer_is_refused_even_where_its_connection_can_not_be_cut(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.Door, "put_out", lambda *_: None)
    ran: list[Inbound] = []
    async with closing(guarded.channel(guarded.key("pc2"))) as channel:
        await ask(channel)
        guarded.recorder.on_request = ran.append
        guarded.folder.revoke({guarded.key("pc2").fingerprint: "pc2"})
        guarded.ring.reload()
        with pytest.raises(CallError):
            await ask(channel, within_s=2.0)
    assert not ran


async def test_a_new_key_comes_in_as_soon_as_it_is_known(guarded: Guarded) -> None:
    key = new_key("pc3", "agent")
    guarded.folder.add([key])
    guarded.ring.reload()
    async with closing(guarded.channel(key)) as channel:
        assert await ask(channel, x=3) == {"x": 3}


async def test_two_inboxes_of_one_process_let_in_their_own(guarded: Guarded, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    other.add([new_key("main_pc", "agent"), guarded.key("pc2")])
    ring = Keyring.of_machine(other, "main_pc")
    recorder = Recorder()
    inbox = Inbox(identity("Other"), recorder, keys=ring)
    echoes(inbox, recorder)
    endpoint = inbox.bind("tcp://127.0.0.1:*", encrypted=True)
    try:
        for name, comes_in in (("pc2", True), ("ops", False)):
            dial = Dial(guarded.key(name), ring.own.public)
            async with closing(Channel("Other", endpoint, identity("caller"), dial=dial)) as channel:
                if comes_in:
                    assert await ask(channel, x=1) == {"x": 1}
                else:
                    with pytest.raises(Unauthenticated):
                        await ask(channel)
    finally:
        inbox.close()
    async with closing(guarded.channel(guarded.key("ops"))) as channel:
        assert await ask(channel, x=1) == {"x": 1}


@pytest.mark.slow
async def test_a_thousand_strangers_do_not_keep_known_callers_out(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = new_key("ops", "operator")
    async with closing(guarded.channel(guarded.key("pc2"))) as known:
        await ask(known)
        for _ in range(20):
            turned_away = guarded.inbox.turned_away
            strangers = [guarded.channel(stranger) for _ in range(50)]
            assert await ask(known, x=1) == {"x": 1}
            async with closing(guarded.channel(guarded.key("ops"))) as late:
                assert await ask(late, x=2) == {"x": 2}
            await eventually(lambda before=turned_away: guarded.inbox.turned_away == before + 50)  # type: ignore[misc]
            for channel in strangers:
                channel.close()
    assert guarded.inbox.turned_away == 1000
