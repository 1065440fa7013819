"""Calls between real processes that are killed, stopped, and replaced on their listener."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from agentkit.agent.blocking import BlockingCaller
from agentkit.agent.caller import Caller
from agentkit.directory.base import AgentRecord
from agentkit.directory.static import StaticDirectory
from agentkit.errors import CallError, DeadlineExceeded, PeerLost
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.resilience.deadline import Deadline
from tests.agentkit.support import PATIENCE_S, ROOT, Nursery, eventually, identity, outcome

pytestmark = pytest.mark.process

WORKER = AgentId(MachineName("test"), AgentName("Worker"))


def record(endpoint: str, incarnation: int = 0) -> AgentRecord:
    return AgentRecord(
        id=WORKER, incarnation=Incarnation(incarnation), phase="ready", endpoints={"inbox-local": endpoint}
    )


@contextmanager
def calling(endpoint: str, incarnation: int = 0) -> Iterator[tuple[Caller, StaticDirectory]]:
    directory = StaticDirectory(here="test")
    directory.put(record(endpoint, incarnation))
    caller = Caller(identity("caller"), directory)
    try:
        yield caller, directory
    finally:
        caller.close()


async def test_a_callee_that_is_killed_in_a_call_is_lost_long_before_the_calls_deadline(nursery: Nursery) -> None:
    took_s = []
    with calling(nursery.endpoint) as (caller, _):
        for incarnation in range(1, 6):
            pid = nursery.fork(incarnation)
            assert await caller.call("Worker", "whoami", timeout=PATIENCE_S) == pid
            call = asyncio.create_task(outcome(caller.call("Worker", "wait", {"seconds": 30}, timeout=30)))
            await caller.call("Worker", "echo", {"x": 1})
            began = time.monotonic()
            nursery.kill(pid)
            error = await call
            took_s.append(time.monotonic() - began)
            assert (type(error), error.retry_safe) == (PeerLost, False)
            assert nursery.exit_code(pid) == -signal.SIGKILL
    print("peer lost after", ", ".join(f"{s * 1e3:.1f} ms" for s in took_s))
    assert max(took_s) < PATIENCE_S


async def test_a_callee_that_is_killed_before_welcome_costs_no_call_its_answer(nursery: Nursery) -> None:
    first = nursery.fork(1)
    await nursery.ready(1)
    nursery.kill(first, signal.SIGSTOP)  # its libzmq accepts no more, the kernel does
    with calling(nursery.endpoint) as (caller, _):
        calls = [asyncio.create_task(outcome(caller.call("Worker", "echo", {"x": x}, timeout=20))) for x in range(20)]
        await asyncio.sleep(0.1)
        assert not any(call.done() for call in calls)
        nursery.fork(2)
        nursery.kill(first)
        nursery.exit_code(first)
        assert [await call for call in calls] == list(range(20))


async def test_a_request_to_a_process_that_does_not_exist_yet_is_answered_when_it_does(nursery: Nursery) -> None:
    with calling(nursery.endpoint) as (caller, _):
        call = asyncio.create_task(caller.call("Worker", "echo", {"x": 5}, timeout=20))
        await asyncio.sleep(0.1)
        nursery.fork()
        assert await call == 5


async def test_a_caller_that_is_killed_has_its_handlers_cancelled(nursery: Nursery) -> None:
    diary = nursery.folder / "diary"
    pid = nursery.fork(config={"diary": str(diary)})
    await nursery.ready()
    script = (
        "from agentkit import BlockingClient\n"
        f"with BlockingClient(peers={{'Worker': '{nursery.endpoint}'}}) as client:\n"
        "    client.call('Worker', 'wait', {'seconds': 30}, timeout=30)\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        await eventually(lambda: diary.exists() and "wait began" in diary.read_text())
    finally:
        caller.kill()
        caller.wait()
    await eventually(lambda: "wait cancelled" in diary.read_text())
    assert nursery.told.find(X_AGENTKIT_ERROR="x") is None
    nursery.kill(pid, signal.SIGTERM)
    assert nursery.exit_code(pid) == 0


async def test_calls_to_a_stopped_process_end_at_their_deadline_and_work_again_afterwards(nursery: Nursery) -> None:
    pid = nursery.fork()
    with calling(nursery.endpoint) as (caller, _):
        assert await caller.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S) == 1
        nursery.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        ends = await asyncio.gather(
            *(outcome(caller.call("Worker", "echo", {"x": 1}, timeout=s)) for s in (0.1, 0.2, 0.4))
        )
        assert {type(end) for end in ends} == {DeadlineExceeded}
        assert 0.4 <= time.monotonic() - began < PATIENCE_S
        nursery.kill(pid, signal.SIGCONT)
        assert await caller.call("Worker", "echo", {"x": 2}, timeout=PATIENCE_S) == 2


def test_blocking_calls_to_a_stopped_process_end_at_their_deadline(nursery: Nursery) -> None:
    pid = nursery.fork()
    caller = BlockingCaller(identity("caller"), lambda _name, _deadline: (record(nursery.endpoint),))
    try:
        assert caller.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S) == 1
        nursery.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            caller.call("Worker", "echo", {"x": 1}, timeout=0.2)
        assert 0.2 <= time.monotonic() - began < PATIENCE_S
        nursery.kill(pid, signal.SIGCONT)
        assert caller.call("Worker", "echo", {"x": 2}, timeout=PATIENCE_S) == 2
        nursery.kill(pid, signal.SIGSTOP)
        threading.Timer(0.1, nursery.kill, (pid,)).start()
        with pytest.raises(PeerLost):
            caller.call("Worker", "wait", {"seconds": 9}, timeout=PATIENCE_S)
    finally:
        caller.close()


async def test_an_agent_that_restarts_is_found_again_though_the_directory_lags_behind(nursery: Nursery) -> None:
    with calling(nursery.endpoint, 1) as (caller, directory):
        first = nursery.fork(1)
        assert await caller.call("Worker", "whoami", timeout=PATIENCE_S) == first
        nursery.kill(first)
        nursery.exit_code(first)
        second = nursery.fork(2)
        # the directory still says incarnation 1: its channel is dead, the next one is sent away once, then takes any life
        await eventually(lambda: not caller._channels)
        assert await caller.call("Worker", "whoami", timeout=PATIENCE_S) == second
        directory.put(record(nursery.endpoint, 2))
        assert await caller.call("Worker", "whoami", timeout=PATIENCE_S) == second


async def test_the_directorys_word_ends_calls_to_a_life_that_was_replaced(nursery: Nursery) -> None:
    pid = nursery.fork(1)
    with calling(nursery.endpoint, 1) as (caller, _):
        await caller.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S)
        nursery.kill(pid, signal.SIGSTOP)  # its connections stay open, as those of a machine that was cut off
        call = asyncio.create_task(outcome(caller.call("Worker", "echo", {"x": 2}, timeout=30)))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        caller.on_records("Worker", (record(nursery.endpoint, 2),))
        assert type(await call) is PeerLost
        assert time.monotonic() - began < PATIENCE_S


async def test_a_life_that_drains_beside_its_successor_answers_what_it_runs(nursery: Nursery) -> None:
    nursery.fork(1)
    with calling(nursery.endpoint, 1) as (caller, _):
        call = asyncio.create_task(outcome(caller.call("Worker", "wait", {"seconds": 0.2}, timeout=PATIENCE_S)))
        await eventually(lambda: caller._channels and next(iter(caller._channels.values())).in_flight)
        caller.on_records("Worker", (replace(record(nursery.endpoint, 2), predecessor=Incarnation(1)),))
        assert not isinstance(await call, CallError)


class Tally:
    """What became of calls, and how long the slowest took."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.slowest_s = 0.0

    def add(self, end: Any, began_s: float) -> None:
        self.ends["answered" if isinstance(end, int) else f"{type(end).__name__}: {end}"] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    def __str__(self) -> str:
        return f"{dict(self.ends)}, slowest {self.slowest_s * 1e3:.0f} ms"


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["a new caller for each call", "one caller"])
async def test_calls_in_the_instant_of_an_exit_are_not_lost(nursery: Nursery, kind: str, times: int) -> None:
    """SIGTERM within 1.5 ms of the call, a successor on the same listener; 150 exits, the same jitter every time."""
    rng = random.Random(7)
    tally = Tally()
    incarnation = 1
    old = nursery.fork(incarnation)
    await nursery.ready(incarnation)
    shared = Caller(identity("caller"), StaticDirectory({"Worker": nursery.endpoint}, here="test"))
    try:
        for _ in range(150 * times):
            incarnation += 1
            successor = nursery.fork(incarnation)
            await nursery.ready(incarnation)
            fresh = Caller(identity("caller"), StaticDirectory({"Worker": nursery.endpoint}, here="test"))
            caller = shared if kind == "one caller" else fresh
            threading.Timer(max(0.0, rng.uniform(0, 0.003)), nursery.kill, (old, signal.SIGTERM)).start()
            await asyncio.sleep(rng.uniform(0, 0.003))
            began = time.monotonic()
            ends = await asyncio.gather(
                *(outcome(caller.call("Worker", "echo", {"x": x}, timeout=20)) for x in range(3))
            )
            for end in ends:
                tally.add(end, began)
            fresh.close()
            assert await asyncio.to_thread(nursery.exit_code, old) == 0
            old = successor
    finally:
        shared.close()
    print(f"\n{kind}: {tally}")
    assert set(tally.ends) == {"answered"}


@pytest.mark.slow
@pytest.mark.soak
async def test_blocking_calls_in_the_instant_of_an_exit_are_not_lost(nursery: Nursery, times: int) -> None:
    rng = random.Random(8)
    tally = Tally()
    stop = threading.Event()
    caller = BlockingCaller(identity("caller"), lambda _name, _deadline: (record(nursery.endpoint),))

    def calls() -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                end: Any = caller.call("Worker", "echo", {"x": 1}, timeout=20)
            except Exception as exc:
                end = exc
            tally.add(end, began)

    incarnation = 1
    old = nursery.fork(incarnation)
    await nursery.ready(incarnation)
    threads = [threading.Thread(target=calls) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60 * times):
            incarnation += 1
            successor = nursery.fork(incarnation)
            await nursery.ready(incarnation)
            await asyncio.sleep(rng.uniform(0, 0.01))
            nursery.kill(old, signal.SIGTERM)
            assert await asyncio.to_thread(nursery.exit_code, old) == 0
            old = successor
    finally:
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        caller.close()
    print(f"\nblocking: {tally}")
    assert set(tally.ends) == {"answered"}


async def test_a_stopping_agent_answers_what_runs_and_exits_0(nursery: Nursery) -> None:
    diary = nursery.folder / "diary"
    pid = nursery.fork(config={"diary": str(diary)})
    with calling(nursery.endpoint) as (caller, _):
        call = asyncio.create_task(caller.call("Worker", "wait", {"seconds": 0.5}, timeout=20))
        await eventually(lambda: diary.exists() and "wait began" in diary.read_text())
        nursery.kill(pid, signal.SIGTERM)
        await nursery.told.wait(STOPPING="1")
        assert await call == "waited"
        assert nursery.exit_code(pid) == 0
    assert diary.read_text().split("\n")[:3] == ["wait began", "wait ended", "stopped"]


async def test_a_stopping_agent_whose_grace_period_ends_cancels_what_runs_and_exits_0(nursery: Nursery) -> None:
    diary = nursery.folder / "diary"
    pid = nursery.fork(config={"diary": str(diary)}, AGENTKIT_GRACE_S="0.4")
    with calling(nursery.endpoint) as (caller, _):
        call = asyncio.create_task(outcome(caller.call("Worker", "wait", {"seconds": 30}, timeout=30)))
        await eventually(lambda: diary.exists() and "wait began" in diary.read_text())
        nursery.kill(pid, signal.SIGTERM)
        error = await call
        assert (error.code, "grace period" in error.message) == ("cancelled", True)
        assert nursery.exit_code(pid) == 0
    assert diary.read_text().split("\n")[:3] == ["wait began", "wait cancelled", "stopped"]


async def test_a_stopping_agent_does_not_wait_for_a_thread_that_hangs(nursery: Nursery) -> None:
    pid = nursery.fork(AGENTKIT_GRACE_S="0.4")
    with calling(nursery.endpoint) as (caller, _):
        call = asyncio.create_task(outcome(caller.call("Worker", "block", {"seconds": 60}, timeout=60)))
        await caller.call("Worker", "echo", {"x": 1})
        nursery.kill(pid, signal.SIGTERM)
        began = time.monotonic()
        assert (await call).code in ("cancelled", "peer_lost")
        assert nursery.exit_code(pid) == 0
        assert time.monotonic() - began < PATIENCE_S


async def test_the_callee_drops_what_its_deadline_left_no_time_for(nursery: Nursery) -> None:
    diary = nursery.folder / "diary"
    pid = nursery.fork(config={"diary": str(diary)})
    with calling(nursery.endpoint) as (caller, _):
        await caller.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S)
        end = await outcome(caller.call("Worker", "wait", {"seconds": 30}, timeout=0.1))
        assert type(end) is DeadlineExceeded
        await eventually(lambda: "wait cancelled" in diary.read_text())
        diary.write_text("")
        nursery.kill(pid, signal.SIGSTOP)
        end = await outcome(caller.call("Worker", "wait", {"seconds": 30}, timeout=0.1))
        assert type(end) is DeadlineExceeded
        nursery.kill(pid, signal.SIGCONT)
        await caller.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S)
        assert "wait ended" not in diary.read_text()
        assert Deadline.after(1).left_s() > 0


async def test_a_process_that_may_open_no_more_sockets_says_so_and_goes_on() -> None:
    program = """
import asyncio, resource
from agentkit.errors import Unreachable
from agentkit.resilience.deadline import Deadline
from agentkit.transport.channel import Channel
from tests.agentkit.support import an_inbox, echoes, identity, outcome

async def main() -> None:
    async with an_inbox() as (inbox, recorder, endpoint):
        echoes(inbox, recorder)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        channels = []
        while True:
            try:
                channels.append(Channel("x", endpoint, identity("caller")))
            except Unreachable as error:
                assert "ulimit" in error.message
                break
            await asyncio.sleep(0.001)
        assert len(channels) > 20
        for channel in channels[10:]:
            channel.close()
        await asyncio.sleep(0.1)
        for _ in range(10):
            channel = Channel("x", endpoint, identity("caller"))
            assert await channel.request("m", b"\\x80", Deadline.after(5).at_s, {})[1] == {}
            channel.close()
        for channel in channels[:10]:
            channel.close()

asyncio.run(main())
"""
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
