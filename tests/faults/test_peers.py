"""Peers that fail in other ways than by dying: every call ends with an answer or a typed error, and nothing is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from agentkit.client import BlockingClient, Client
from agentkit.errors import CallError, DeadlineExceeded
from agentkit.names import Incarnation
from agentkit.transport import vigil
from agentkit.wire import codec, values
from agentkit.wire import envelope as ak
from tests.agentkit.support import PATIENCE_S, ROOT, Nursery, eventually, in_time, nothing_left_at, raw

pytestmark = pytest.mark.process

#: Accepts whoever comes, and answers as it is told: every frame with garbage, or introduces itself first.
LIAR = """
import random, sys
import zmq
from agentkit.wire import codec
from agentkit.wire.envelope import Hello, Welcome

introduces_itself = sys.argv[1] == "welcome"
chance = random.Random(7)
router = zmq.Context().socket(zmq.ROUTER)
print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
while True:
    id, header, *rest = router.recv_multipart()
    try:
        message = codec.decode(header)
    except codec.BadFrame:
        message = None
    if introduces_itself and isinstance(message, Hello):
        router.send_multipart([id, codec.encode(Welcome(1, "Liar", "test/Liar", 0))])
    for size in (0, 1, 40, 3000):
        router.send_multipart([id, chance.randbytes(size)])
    # headers that are well begun: a REPLY with wrong fields, one whose body is no msgpack, one for a call that there is not, a REQUEST
    well_begun = [
        [b"\\x93\\x04\\x01\\xc0"], [b"\\x93\\x04\\x02\\x80", b"\\xc1"],
        [b"\\x93\\x04\\xcd\\x03\\xe7\\x80", b"\\x01"], [b"\\x96\\x03\\x01\\xa1x\\x01\\x00\\x80"],
    ]
    for frames in well_begun:
        router.send_multipart([id, *frames])
"""


@contextmanager
def a_liar(how: str) -> Iterator[str]:
    """Its endpoint."""
    with subprocess.Popen([sys.executable, "-c", LIAR, how], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"tcp://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["nothing else", "welcome"])
async def test_calls_to_a_peer_that_answers_garbage_end_in_time_and_other_peers_are_reached(
    nursery: Nursery, how: str
) -> None:
    nursery.fork(1)
    with a_liar(how) as endpoint:
        async with Client(peers={"Liar": endpoint, "Worker": nursery.endpoint}) as client:
            ends, five = await asyncio.gather(
                in_time([client.call("Liar", "m", timeout=1.0) for _ in range(20)], 1.0),
                client.call("Worker", "echo", {"x": 5}, timeout=PATIENCE_S),
            )
            assert five == 5
            assert all(isinstance(end, CallError) for end in ends), ends
            assert {end.code for end in ends} <= {
                "deadline_exceeded",
                "internal",
                "overloaded",
                "unreachable",
                "peer_lost",
            }
            assert await client.call("Worker", "echo", {"x": 6}, timeout=PATIENCE_S) == 6


async def test_a_request_that_was_meant_for_the_life_before_does_not_run(nursery: Nursery) -> None:
    diary = nursery.folder / "diary"
    nursery.fork(2, config={"diary": str(diary)})
    await nursery.ready(2)
    with raw(nursery.endpoint) as caller:
        # what a reconnecting socket would hand over: HELLO for the first life, and the request behind it
        caller.send(ak.Hello(1, "raw", "test/raw", Incarnation(1)))
        caller.request(1, "wait", {"seconds": 0.0})
        assert await caller.message() == ak.GoAway("another incarnation", 0)
        assert type(await caller.message()) is ak.GoAway
        error = await caller.message()
        assert (error.id, error.retry_safe) == (1, True)
    with raw(nursery.endpoint) as caller:  # one that never said HELLO on this connection
        caller.request(1, "wait", {"seconds": 0.0})
        assert type(await caller.message()) is ak.GoAway
    assert not diary.exists()
    with raw(nursery.endpoint) as caller:
        await caller.hello(incarnation=2)
        caller.request(1, "wait", {"seconds": 0.0})
        assert type(await caller.message()) is ak.Reply
    assert "wait ended" in diary.read_text()


@pytest.mark.parametrize(("size", "count"), [(10_000, 20_000), (500_000, 1_200)])
async def test_a_caller_that_never_reads_is_given_up_and_the_agent_keeps_its_memory_and_its_callers(
    nursery: Nursery, size: int, count: int
) -> None:
    agent = psutil.Process(nursery.fork(1))
    async with nothing_left_at(nursery.endpoint), Client(peers={"Worker": nursery.endpoint}) as good:
        assert await good.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S) == 1
        before_mb = agent.memory_info().rss / 2**20
        with raw(nursery.endpoint, rcvhwm=1) as deaf:
            await deaf.hello()
            deaf._reader.close()  # reads nothing from here on: the kernel's buffers fill, then libzmq's queue, then the agent's
            most_mb = 0.0
            for id in range(1, count + 1):
                deaf.sock.send_multipart(
                    [codec.encode(ak.Request(id, "blob", 60_000, 0, {})), values.pack({"size": size})]
                )
                if id % (count // 40) == 0:
                    assert await good.call("Worker", "echo", {"x": id}, timeout=PATIENCE_S) == id
                    most_mb = max(most_mb, agent.memory_info().rss / 2**20 - before_mb)
            assert most_mb < 256 + 86, "256 MiB of answers, what libzmq holds, and room"
            await eventually(lambda: "inbox.peer_too_slow" in nursery.log)
        assert await good.call("Worker", "echo", {"x": 7}, timeout=PATIENCE_S) == 7


async def test_what_a_stopped_peer_has_not_read_is_not_kept_for_it(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vigil, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(vigil, "LOST_AFTER_S", 0.5)
    pid, me = nursery.fork(1), psutil.Process()

    def held_mb() -> float:
        gc.collect()
        return me.memory_info().rss / 2**20

    async with Client(peers={"Worker": nursery.endpoint}) as client:
        assert await client.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S) == 1
        nursery.kill(pid, signal.SIGSTOP)
        before_mb = held_mb()
        calls = [client.call("Worker", "echo", {"x": os.urandom(1_000_000)}, timeout=0.3) for _ in range(100)]
        assert {type(end) for end in await in_time(calls, 0.3)} == {DeadlineExceeded}
        await eventually(lambda: held_mb() < before_mb + 40)
        nursery.kill(pid, signal.SIGCONT)
        assert await client.call("Worker", "echo", {"x": 2}, timeout=PATIENCE_S) == 2


def test_what_a_stopped_peer_has_not_read_is_not_kept_by_threads_either(nursery: Nursery) -> None:
    pid, me = nursery.fork(1), psutil.Process()
    with BlockingClient(peers={"Worker": nursery.endpoint}) as client:
        assert client.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S) == 1
        nursery.kill(pid, signal.SIGSTOP)
        before_mb = me.memory_info().rss / 2**20
        for _ in range(20):
            with pytest.raises(DeadlineExceeded):
                client.call("Worker", "echo", {"x": os.urandom(5_000_000)}, timeout=0.05)
        gc.collect()
        assert me.memory_info().rss / 2**20 < before_mb + 40
        nursery.kill(pid, signal.SIGCONT)
        assert client.call("Worker", "echo", {"x": 2}, timeout=PATIENCE_S) == 2
