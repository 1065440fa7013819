"""Relays of several machines, with the sockets of publishers and subscribers, in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import zmq

from agentkit.security.folder import KeyFolder
from agentkit.security.keys import new_key
from agentkit.security.ring import Keyring
from agentkit.transport import context
from agentkit.transport.curve import Doorkeeper, calling
from agentkit.transport.dealer import Dial
from agentkit.transport.frames import is_readable
from agentkit.transport.pubsub import Endpoints, Sender, Subscriber
from agentkit.transport.reader import Reader
from agentkit.transport.relay import Relay
from tests.agentkit.support import eventually

FRAME_BYTES = 1000


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / name for name in "abcd"]
    for folder in found:
        folder.mkdir()
    return found


@pytest.fixture
def relays(folders: list[Path]) -> Iterator[list[Relay]]:
    """Of four machines, each of which knows all others."""
    made = [Relay(folder, "127.0.0.1", max_frame_bytes=FRAME_BYTES) for folder in folders]
    for relay in made:
        for number, other in enumerate(made):
            if other is not relay:
                relay.hear(f"m{number}", other.out)
    yield made
    for relay in made:
        relay.close()


class Ear:
    def __init__(self, folder: Path, *prefixes: bytes) -> None:
        self.heard: list[bytes] = []
        self.subscriber = Subscriber(
            Endpoints.below(folder)[1:],
            prefixes,
            self.heard.append,
            max_frame_bytes=FRAME_BYTES,
        )

    def count(self, frame: bytes) -> int:
        return self.heard.count(frame)


@asynccontextmanager
async def ears(folders: list[Path], *prefixes: bytes) -> AsyncIterator[list[Ear]]:
    """One on each machine, with subscriptions that are in force everywhere."""
    with ExitStack() as stack:
        listening = [Ear(folder, *prefixes) for folder in folders]
        for ear in listening:
            stack.callback(ear.subscriber.close)
        for number, folder in enumerate(folders):
            sender = Sender(Endpoints.below(folder).publish)
            stack.callback(sender.close)
            mark = prefixes[0] + b"mark%d" % number
            async with asyncio.timeout(10):
                while not all(mark in ear.heard for ear in listening):
                    sender.send(mark)
                    await asyncio.sleep(0.01)
        yield listening


async def test_every_subscriber_of_every_machine_gets_each_event_once(relays: list[Relay], folders: list[Path]) -> None:
    async with ears(folders, b"task.") as listening:
        senders = [Sender(Endpoints.below(folder).publish) for folder in folders]
        for n in range(100):
            for number, sender in enumerate(senders):
                assert sender.send(b"task.x %d %d" % (number, n))
                assert sender.send(b"other.x %d %d" % (number, n))
        for number, sender in enumerate(senders):
            assert sender.send(b"task.end %d" % number)
            sender.close()
        ends = [b"task.end %d" % number for number in range(4)]
        await eventually(lambda: all(end in ear.heard for ear in listening for end in ends))
        for ear in listening:
            for number in range(4):
                mine = [frame for frame in ear.heard if frame.startswith(b"task.x %d " % number)]
                assert mine == [b"task.x %d %d" % (number, n) for n in range(100)]
            assert not any(frame.startswith(b"other") for frame in ear.heard)


async def test_a_relay_that_is_another_one_now_is_heard_and_one_that_is_gone_is_not(
    relays: list[Relay], folders: list[Path], tmp_path: Path
) -> None:
    async with ears(folders[:1], b"t.") as (ear,):
        relays[1].close()
        relays[1] = Relay(folders[1], "127.0.0.1", max_frame_bytes=FRAME_BYTES)
        relays[0].hear("m1", relays[1].out)
        sender = Sender(Endpoints.below(folders[1]).publish)
        async with asyncio.timeout(10):
            while b"t.again" not in ear.heard:
                sender.send(b"t.again")
                await asyncio.sleep(0.01)
        relays[0].hear("m1", None)
        # orders are carried out one after the other: after this one the connection is gone
        relays[0].hear("m9", "tcp://127.0.0.1:1")
        near = Sender(Endpoints.below(folders[0]).publish)
        before = len(ear.heard)
        for n in range(50):
            sender.send(b"t.gone %d" % n)
            await asyncio.sleep(0.002)
        near.send(b"t.near")
        await eventually(lambda: b"t.near" in ear.heard)
        assert ear.count(b"t.gone 49") == 0
        assert len(ear.heard) <= before + 51
        for one in (sender, near):
            one.close()


async def test_a_publisher_keeps_its_events_for_a_relay_that_is_away(folders: list[Path]) -> None:
    sender = Sender(Endpoints.below(folders[0]).publish)
    sent = [b"t.x %d" % n for n in range(1000)]
    assert all(map(sender.send, sent))
    relay = context.socket(zmq.PULL, max_frame_bytes=-1)
    arrived: list[bytes] = []
    reader = Reader(relay, lambda frames: arrived.extend(frames))
    relay.bind(Endpoints.below(folders[0]).publish)
    reader.poke()
    await eventually(lambda: len(arrived) == len(sent))
    assert arrived == sent
    reader.close()
    for sock in (relay, sender):
        sock.close()


async def test_a_publisher_without_a_relay_is_told_when_there_is_no_more_room(folders: list[Path]) -> None:
    sender = Sender(Endpoints.below(folders[0]).publish)
    assert [sender.send(b"t.x") for _ in range(3000)].count(True) < 2000
    sender.close()


async def test_messages_of_several_parts_or_too_long_hurt_nobody(relays: list[Relay], folders: list[Path]) -> None:
    async with ears(folders[:2], b"t.") as (ear, far):
        stranger = context.socket(zmq.PUSH, max_frame_bytes=-1)
        stranger.connect(Endpoints.below(folders[0]).publish)
        stranger.send_multipart([b"t.x", b"second"])
        # parts arrive one by one, for the receiver to refuse
        await eventually(lambda: ear.heard[-2:] == far.heard[-2:] == [b"t.x", b"second"])
        stranger.send(b"t." + b"x" * 2 * FRAME_BYTES)  # libzmq ends that connection, and takes the next
        stranger.close(linger=1000)
        sender = Sender(Endpoints.below(folders[0]).publish)
        sender.send(b"t.good")
        await eventually(lambda: b"t.good" in ear.heard)
        assert max(map(len, ear.heard)) < FRAME_BYTES
        sender.close()


def test_a_relay_leaves_nothing(folders: list[Path]) -> None:
    for _ in range(3):
        Relay(folders[0], "127.0.0.1", max_frame_bytes=FRAME_BYTES).close()
    assert list(folders[0].iterdir()) == []


def test_an_address_that_cannot_be_bound_is_told(folders: list[Path]) -> None:
    with pytest.raises(OSError, match="the event relay can't listen"):
        Relay(folders[0] / "missing", "127.0.0.1", max_frame_bytes=FRAME_BYTES)


@pytest.mark.process
def test_an_idle_relay_does_not_wake(folders: list[Path]) -> None:
    """In a process of its own: this one has other threads."""
    import subprocess
    import sys

    code = f"""
import os, time
from agentkit.transport.reader import Reader
from agentkit.transport.relay import Relay
relay = Relay({str(folders[0])!r}, "127.0.0.1", max_frame_bytes=1000)
relay.hear("other", relay.out)
def wakes():
    found = {{}}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{{task}}/status") as file:
            found[task] = int(next(line for line in file if line.startswith("voluntary")).split()[1])
    return found
time.sleep(0.5)
before = wakes()
time.sleep(2)
print(sum(count - before[task] for task, count in wakes().items()))
relay.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 4
    assert os.listdir(folders[0]) == []


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    """Of two machines."""
    folder = KeyFolder(tmp_path / "keys")
    folder.add([new_key("m0", "agent"), new_key("m1", "agent")])
    return folder


@asynccontextmanager
async def guarded(folders: list[Path], keys: KeyFolder) -> AsyncIterator[tuple[list[Relay], list[Keyring]]]:
    """Two relays that know each other by their keys."""
    rings = [Keyring.of_machine(keys, f"m{number}") for number in range(2)]
    made = [
        Relay(folder, "127.0.0.1", max_frame_bytes=FRAME_BYTES, keys=ring)
        for folder, ring in zip(folders, rings, strict=False)
    ]
    for number, relay in enumerate(made):
        other = 1 - number
        relay.hear(f"m{other}", made[other].out, Dial(rings[number].own, rings[other].own.public))
    try:
        yield made, rings
    finally:
        for relay in made:
            relay.close()
        assert not Doorkeeper._of


async def test_with_keys_relays_tell_each_other_and_no_stranger(folders: list[Path], keys: KeyFolder) -> None:
    async with guarded(folders, keys) as (relays, _), ears(folders[:2], b"t") as listening:
        stranger = context.socket(zmq.SUB, max_frame_bytes=-1)
        unknown = context.socket(zmq.SUB, max_frame_bytes=-1)
        try:
            own = new_key("m1", "agent")
            calling(unknown, own, keys.load().of("m0")[0].public)
            for sock in (stranger, unknown):
                sock.subscribe(b"")
                sock.connect(relays[0].out)
            sender = Sender(Endpoints.below(folders[0]).publish)
            for number in range(50):
                sender.send(b"t event %d" % number)
            await eventually(lambda: all(ear.count(b"t event 49") for ear in listening))
            assert not is_readable(stranger)
            assert not is_readable(unknown)
            sender.close()
        finally:
            stranger.close(linger=0)
            unknown.close(linger=0)


async def test_a_relay_whose_key_is_revoked_hears_nothing_more(folders: list[Path], keys: KeyFolder) -> None:
    async with guarded(folders, keys) as (relays, rings), ears(folders[:2], b"t") as listening:
        keys.revoke({rings[1].own.fingerprint: "m1"})
        rings[0].reload()
        relays[0].cut()
        sender = Sender(Endpoints.below(folders[0]).publish)
        for number in range(50):
            sender.send(b"t after %d" % number)
            await asyncio.sleep(0.01)
        await eventually(lambda: listening[0].count(b"t after 49"))
        assert not listening[1].count(b"t after 49")
        sender.close()


async def test_those_that_are_known_come_back_after_a_cut(folders: list[Path], keys: KeyFolder) -> None:
    async with guarded(folders, keys) as (relays, _), ears(folders[:2], b"t") as listening:
        relays[0].cut()
        sender = Sender(Endpoints.below(folders[0]).publish)
        async with asyncio.timeout(20):
            while not listening[1].count(b"t again"):
                sender.send(b"t again")
                await asyncio.sleep(0.02)
        sender.close()
