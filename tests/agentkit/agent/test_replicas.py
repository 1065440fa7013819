"""Calls over real sockets when there are several instances, or one that is gone: balancing, retries, breakers."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentkit import BaseAgent, CallPolicy, Unreachable, rpc
from agentkit.agent.blocking import BlockingCaller
from agentkit.agent.caller import Caller
from agentkit.directory.base import AgentRecord
from agentkit.directory.static import StaticDirectory
from agentkit.names import AgentId, Incarnation
from agentkit.resilience.policy import CallPolicies
from agentkit.testing import Running, running
from tests.agentkit.support import Listener, eventually, identity


class Store(BaseAgent):
    """Says who it is."""

    def __init__(self) -> None:
        self.ran = 0

    @rpc(idempotent=True)
    async def whoami(self) -> int:
        self.ran += 1
        return id(self)

    @rpc(balance="hash", key="user")
    async def of_user(self, user: str) -> int:
        return id(self)


class Asker(BaseAgent):
    """Calls others."""

    call_policy = CallPolicy(breaker_failures=3)

    @rpc
    async def ask(self, attempts: int = 1) -> Any:
        return await self.call("Store", "whoami", attempts=attempts)


def records(*stores: Running[Store]) -> tuple[AgentRecord, ...]:
    return tuple(
        AgentRecord(
            id=AgentId.parse(f"test/Store#{slot}"), incarnation=Incarnation(0), phase="ready",
            endpoints={"inbox-local": store.endpoint}, traits={"of_user": {"balance": "hash", "key": "user"}},
        )
        for slot, store in enumerate(stores)
    )  # fmt: skip


@contextlib.asynccontextmanager
async def stores(count: int) -> AsyncIterator[tuple[list[Running[Store]], Caller]]:
    async with contextlib.AsyncExitStack() as stack:
        started = [await stack.enter_async_context(running(Store)) for _ in range(count)]
        directory = StaticDirectory(here="test")
        for record in records(*started):
            directory.put(record)
        caller = Caller(identity("caller"), directory)
        stack.callback(caller.close)
        yield started, caller


async def test_calls_spread_over_replicas_and_a_key_stays_with_one() -> None:
    async with stores(3) as (_, caller):
        spread = Counter(await asyncio.gather(*(caller.call("Store", "whoami") for _ in range(300))))
        assert len(spread) == 3
        assert max(spread.values()) < 150
        for user in "abcdefgh":
            assert len({await caller.call("Store", "of_user", {"user": user}) for _ in range(5)}) == 1
        assert len({await caller.call("Store", "of_user", {"user": user}) for user in "abcdefghijklmnop"}) == 3
        assert len({await caller.peer("Store", key=4).whoami() for _ in range(8)}) == 1


async def test_a_replica_that_is_gone_costs_no_call_and_hardly_any_time() -> None:
    async with running(Store) as there:
        async with running(Store) as gone:
            pass
        directory = StaticDirectory(here="test")
        for record in records(there, gone):
            directory.put(record)
        caller = Caller(identity("caller"), directory)
        began = time.monotonic()
        assert {await caller.call("Store", "whoami") for _ in range(40)} == {id(there.agent)}
        assert time.monotonic() - began < 15, "nobody waited for the one that is gone"
        assert caller.board.openings == {"test/Store#1": 1}
        caller.close()


async def test_a_call_to_one_that_is_not_there_yet_is_made_again_after_a_second() -> None:
    with Listener() as place:
        port = place.sock.getsockname()[1]
    directory = StaticDirectory({"Store": f"tcp://127.0.0.1:{port}"}, here="test")
    caller = Caller(identity("caller"), directory, policies=CallPolicies(CallPolicy(retry_wait_s=0.3)))
    call = asyncio.create_task(caller.call("Store", "whoami"))
    await eventually(lambda: caller.board.retries == {"Store": 1})
    async with running(Store) as store:
        directory.put(records(store)[0])
        assert await call == id(store.agent)
    caller.close()


async def test_after_failures_in_a_row_calls_fail_without_being_made_and_operators_are_told() -> None:
    async with running(Store) as gone:
        pass
    async with running(Asker, peers={"Store": gone.endpoint}) as asker:
        for _ in range(3):
            with pytest.raises(Unreachable, match="nobody listens"):
                await asker.peer.ask()
        with pytest.raises(Unreachable, match="not called, its last calls failed"):
            await asker.peer.ask(attempts=3)
        text = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"{asker.health_url}/metrics", timeout=5).read().decode()
        )
        assert 'agent_breaker_open{agent="Asker",instance="test/Store"} 1.0' in text
        assert 'agent_breaker_openings_total{agent="Asker",instance="test/Store"} 1.0' in text


async def test_blocking_calls_go_by_the_same_rules() -> None:
    async with running(Store) as there:
        async with running(Store) as gone:
            pass
        caller = BlockingCaller(identity("caller"), lambda _name, _deadline: records(there, gone))
        found = await asyncio.to_thread(lambda: {caller.call("Store", "whoami") for _ in range(40)})
        assert found == {id(there.agent)}
        assert caller.board.openings == {"test/Store#1": 1}
        assert caller.board.in_flight(AgentId.parse("test/Store")) == 0
        caller.close()
        alone = BlockingCaller(identity("caller"), lambda _name, _deadline: records(gone))

        def fails() -> str:
            with pytest.raises(Unreachable) as caught:
                alone.call("Store", "whoami", attempts=1)
            return caught.value.message

        assert ["not called" in await asyncio.to_thread(fails) for _ in range(6)] == [False] * 5 + [True]
        alone.close()
