"""Calls while their peers are slow, stopped, killed, overrun, or wait for each other. Each ends with an answer or a typed error by
its deadline, and leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from agentkit import CallPolicy, Client, DeadlineExceeded, Overloaded, PeerLost, Unreachable
from agentkit.agent.caller import Caller
from agentkit.directory.base import AgentRecord
from agentkit.directory.static import StaticDirectory
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.resilience.policy import CallPolicies
from tests.agentkit.support import (
    PATIENCE_S,
    ROOT,
    Listener,
    Nursery,
    eventually,
    identity,
    in_time,
    nothing_left_at,
    outcome,
)

pytestmark = pytest.mark.process

WORKER = AgentId(MachineName("test"), AgentName("Worker"))


@contextlib.asynccontextmanager
async def calling(nursery: Nursery, **policy: Any) -> AsyncIterator[Caller]:
    """A caller whose directory says that `wait` may be run twice and `echo` may not."""
    directory = StaticDirectory(here="test")
    directory.put(
        AgentRecord(
            id=WORKER, incarnation=Incarnation(0), phase="ready", endpoints={"inbox-local": nursery.endpoint},
            traits={"wait": {"idempotent": True}},
        )
    )  # fmt: skip
    caller = Caller(identity("caller"), directory, policies=CallPolicies(CallPolicy(**policy)))
    try:
        yield caller
        await eventually(lambda: all(channel.in_flight == 0 for channel in caller._channels.values()))
    finally:
        caller.close()
    assert caller._channels == {}


async def test_calls_to_a_slow_peer_end_at_their_deadlines_and_it_is_left_alone_then(nursery: Nursery) -> None:
    nursery.fork()
    async with nothing_left_at(nursery.endpoint), calling(nursery) as caller:
        await caller.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S)
        found = await in_time([caller.call("Worker", "wait", {"seconds": 30}, timeout=0.3) for _ in range(40)], 0.3)
        assert {type(end) for end in found} == {DeadlineExceeded}
        error = await outcome(caller.call("Worker", "echo", {"x": 1}))
        assert (type(error), error.details["breaker"]) == (Unreachable, "open"), "it gets no calls for 30 s"
        assert caller.board.openings == {"test/Worker": 1}


async def test_a_peer_that_is_stopped_and_resumed_is_found_well_by_one_probe(nursery: Nursery) -> None:
    pid = nursery.fork()
    async with nothing_left_at(nursery.endpoint), calling(nursery, breaker_rest_s=0.3) as caller:
        assert await caller.call("Worker", "whoami", timeout=PATIENCE_S) == pid
        nursery.kill(pid, signal.SIGSTOP)
        found = await in_time([caller.call("Worker", "echo", {"x": x}, timeout=0.2) for x in range(20)], 0.2)
        assert {type(end) for end in found} == {DeadlineExceeded}
        nursery.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.35)
        assert await caller.call("Worker", "whoami", timeout=PATIENCE_S) == pid
        assert caller.board.breakers == {}


async def test_of_calls_whose_peer_is_killed_only_what_may_run_twice_is_run_again(nursery: Nursery) -> None:
    first = nursery.fork(1)
    async with nothing_left_at(nursery.endpoint), calling(nursery, retry_wait_s=0.2) as caller:
        assert await caller.call("Worker", "whoami", timeout=PATIENCE_S) == first
        waits = [asyncio.create_task(caller.call("Worker", "wait", {"seconds": 0.5}, timeout=20)) for _ in range(5)]
        blocks = [asyncio.create_task(caller.call("Worker", "block", {"seconds": 5}, timeout=20)) for _ in range(5)]
        await asyncio.sleep(0.2)
        nursery.kill(first)
        nursery.exit_code(first)
        nursery.fork(2)
        assert await in_time(waits, 20) == ["waited"] * 5
        assert {type(end) for end in await in_time(blocks, 20)} == {PeerLost}
        assert caller.board.retries == {"Worker": 5}
        assert caller.board.openings == {}, "one connection went: that is one failure"


async def test_calls_whose_peer_is_killed_between_accept_and_welcome_are_answered_by_its_successor(
    nursery: Nursery,
) -> None:
    diary = nursery.folder / "diary"
    first = nursery.fork(1, config={"diary": str(diary)})
    await nursery.ready(1)
    async with calling(nursery, attempts=1) as frozen, calling(nursery) as caller:
        freezing = asyncio.create_task(outcome(frozen.call("Worker", "freeze", {"seconds": 60}, timeout=20)))
        await eventually(lambda: diary.exists() and "frozen" in diary.read_text())
        calls = [asyncio.create_task(caller.call("Worker", "echo", {"x": x}, timeout=20)) for x in range(20)]
        # libzmq's threads have accepted it and shaken hands: HELLO lies in a process that does not read it
        await eventually(lambda: _connections(first, nursery.endpoint) == 2)
        assert not any(call.done() for call in calls)
        nursery.fork(2)
        nursery.kill(first)
        nursery.exit_code(first)
        assert await in_time(calls, 20) == list(range(20)), "none of them had been sent: none is lost"
        assert type(await freezing) is PeerLost
    async with nothing_left_at(nursery.endpoint):
        pass


def _connections(pid: int, endpoint: str) -> int:
    """That a process has accepted."""
    port = int(endpoint.rpartition(":")[2])
    found = psutil.Process(pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)


async def test_a_thousand_callers_at_once_are_answered_or_told_to_come_again(nursery: Nursery) -> None:
    nursery.fork()
    async with nothing_left_at(nursery.endpoint), calling(nursery) as caller:
        await caller.call("Worker", "echo", {"x": 1}, timeout=PATIENCE_S)
        found = await in_time([caller.call("Worker", "block", {"seconds": 0.05}, timeout=5) for _ in range(1000)], 5)
        kinds = Counter(end if isinstance(end, str) else type(end) for end in found)
        assert set(kinds) <= {"blocked", Overloaded, DeadlineExceeded}
        assert kinds["blocked"] >= 8
        assert kinds[Overloaded] > 0, "more than 8 threads can do in that time"
        assert caller.board.retries["Worker"] <= 10 + 1001 * 0.1, "retries stay within their budget"
        assert await caller.call("Worker", "echo", {"x": 2}, timeout=PATIENCE_S) == 2
    async with Client(peers={"Worker": nursery.endpoint}) as client:
        found = await in_time([client.call("Worker", "echo", {"x": x}, timeout=20) for x in range(1000)], 20)
        assert found == list(range(1000)), "what is quick is answered for all"


@pytest.mark.parametrize("method", ["patient", "hasty"])
async def test_agents_that_wait_for_each_other_end_by_deadline_or_overloaded(method: str) -> None:
    """A calls B calls A, and each serves one request at a time."""
    with Listener() as a, Listener() as b:
        ports = {"A": a.sock.getsockname()[1], "B": b.sock.getsockname()[1]}
    endpoints = {name: f"tcp://127.0.0.1:{port}" for name, port in ports.items()}
    with contextlib.ExitStack() as stack:
        for name, other in (("A", "B"), ("B", "A")):
            environ = os.environ | {
                "AGENT_NAME": name, "PORT": str(ports[name]), "AGENT_CONFIG": json.dumps({"other": other}),
                "AGENTKIT_PEERS": json.dumps({other: endpoints[other]}), "AGENTKIT_LOG_LEVEL": "CRITICAL",
            }  # fmt: skip
            process = subprocess.Popen([sys.executable, "-m", "tests.faults.ring"], cwd=ROOT, env=environ)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        async with Client(peers=endpoints) as client:
            await _up(client, *endpoints)
            (end,) = await in_time([client.call("A", method, {"depth": 4}, timeout=1.0, attempts=1)], 1.0)
            assert type(end) in (DeadlineExceeded, Overloaded)
            both = [client.call(name, method, {"depth": 1}, timeout=1.0, attempts=1) for name in endpoints]
            assert {type(end) for end in await in_time(both, 1.0)} <= {DeadlineExceeded, Overloaded, int}
            for name in endpoints:
                assert await client.call(name, method, {"depth": 0}, timeout=PATIENCE_S) == 0, "its place is free again"


async def _up(client: Client, *names: str) -> None:
    async with asyncio.timeout(20):
        for name in names:
            while isinstance(await outcome(client.call(name, "patient", {"depth": 0}, attempts=1)), Unreachable):
                await asyncio.sleep(0.05)
