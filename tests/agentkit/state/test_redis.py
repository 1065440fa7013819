"""States in a real Redis: one that is away, comes back, forgets, wants a password, or is shared with strangers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentkit import AgentState, BaseAgent, ConfigError, StartupError, rpc
from agentkit.agent import state_choice, state_keeper
from agentkit.errors import StateDamaged, StateFenced, StateNotSaved, StateUnreachable
from agentkit.names import AgentId, AgentName, Incarnation, MachineName
from agentkit.settings import AgentSettings
from agentkit.state.store import Snapshot
from agentkit.testing import running
from tests.agentkit.support import eventually
from tests.redis_server import RedisServer, needs_redis

pytestmark = pytest.mark.process

A = AgentId(MachineName("m"), AgentName("A"))
ONE = Incarnation(1)


class Counter(BaseAgent):
    class State(AgentState):
        count: int = 0

    state: State

    @rpc
    async def add(self) -> int:
        self.state.count += 1
        return self.state.count


@pytest.fixture
def server() -> Iterator[RedisServer]:
    needs_redis()
    made = RedisServer()
    made.start()
    yield made
    made.close()


def kept_in(server: RedisServer, cluster: str = "c", url: str = "") -> Any:
    from agentkit.state.redis import RedisStore

    return RedisStore(url or server.url, A, cluster)


def snapshot(number: int, data: bytes = b"{}", incarnation: int = 1) -> Snapshot:
    return Snapshot.of(number, 1, incarnation, float(number), data)


def test_what_was_saved_outlives_a_redis_that_is_killed_and_started_again(server: RedisServer) -> None:
    store = kept_in(server)
    store.claim(ONE)
    store.save(snapshot(1, b"one\x00\xff"))
    server.stop()
    with pytest.raises(StateNotSaved, match=f"127.0.0.1:{server.port}/0 agent:m/A:state"):
        store.save(snapshot(2))
    with pytest.raises(StateUnreachable):
        store.load()
    server.start()
    assert [(found.number, found.data, found.is_whole) for found in store.load().snapshots] == [
        (1, b"one\x00\xff", True)
    ]
    store.save(snapshot(2))
    assert server.ask("HGET", "agent:m/A:state", "incarnation") == b"$1\r\n1\r\n"


def test_a_redis_that_forgot_gets_the_state_anew_and_whoever_came_later_keeps_it(server: RedisServer) -> None:
    store = kept_in(server)
    store.claim(ONE)
    store.save(snapshot(1))
    server.ask("FLUSHALL")
    store.save(snapshot(2, b"two"))
    assert [found.data for found in store.load().snapshots] == [b"two"]
    kept_in(server).claim(Incarnation(2_000_000_000))
    with pytest.raises(StateFenced) as told:
        store.save(snapshot(3))
    assert told.value.holder == 2_000_000_000


def test_agents_of_another_cluster_are_told_apart(server: RedisServer) -> None:
    kept_in(server).claim(ONE)
    with pytest.raises(
        StateDamaged, match=r"belongs to an agent of cluster c, and this is cluster d.*database of its own"
    ):
        kept_in(server, "d").claim(ONE)


def test_what_is_no_state_is_named(server: RedisServer) -> None:
    store = kept_in(server)
    server.ask("SET", "agent:m/A:state", "text")
    with pytest.raises(StateDamaged, match="WRONGTYPE"):
        store.claim(ONE)
    server.ask("DEL", "agent:m/A:state")
    store.claim(ONE)
    store.save(snapshot(1))
    store.save(snapshot(2))
    server.ask("HSET", "agent:m/A:state", "0:number", "many")
    found = store.load()
    assert [it.number for it in found.snapshots] == [1]
    assert "fields of snapshot 0 are wrong" in found.unreadable[0]


def test_a_password_is_taken_and_never_told() -> None:
    needs_redis()
    server = RedisServer("--requirepass", "hush-hush")
    server.start()
    try:
        store = kept_in(server, url=f"redis://:hush-hush@127.0.0.1:{server.port}/0")
        store.claim(ONE)
        assert "hush" not in store.where
        wrong = kept_in(server, url=f"redis://:wrong-hush@127.0.0.1:{server.port}/0")
        with pytest.raises(StateUnreachable) as told:
            wrong.claim(ONE)
        assert "hush" not in str(told.value)
        with pytest.raises(ConfigError) as refused:
            kept_in(server, url="http://:hush@host")
        assert "hush" not in str(refused.value)
    finally:
        server.close()


def test_a_full_redis_says_so_and_keeps_what_it_has(server: RedisServer) -> None:
    store = kept_in(server)
    store.claim(ONE)
    store.save(snapshot(1))
    server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StateNotSaved, match="maxmemory"):
        store.save(snapshot(2))
    assert [found.number for found in store.load().snapshots] == [1]


async def test_an_agent_whose_redis_is_away_reports_it_and_saves_when_it_is_back(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_keeper, "RETRY_S", 0.05)
    monkeypatch.setattr(state_keeper, "PATIENCE_S", 0.0)
    store, seen = kept_in(server), kept_in(server)  # one thread at a time: the agent's has the first
    async with running(Counter, state=store, state_every_s=0.05) as counter:
        server.stop()
        await counter.peer.add()
        await eventually(lambda: counter.agent._error_bus.reported["error"] > 1)
        server.start()
        await eventually(lambda: [found.data for found in seen.load().snapshots] == [b'{"count":1}'])
    server.stop()
    with pytest.raises(StartupError, match=r"the state can't be restored: redis://127\.0\.0\.1"):
        async with running(Counter, state=store):
            pass


def test_settings_choose_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_redis()
    url = "redis://127.0.0.1:1/0"
    monkeypatch.setenv("AGENTKIT_STATE_URL", url)
    environment = {
        "AGENT_NAME": "A", "AGENT_MACHINE": "m", "AGENTKIT_STATE_STORE": "redis", "AGENTKIT_STATE_URL": url,
    }  # fmt: skip
    settings = AgentSettings.from_environment(environment, default_name="A")
    assert state_choice._store_of(settings).where == f"{url} agent:m/A:state"
    with pytest.raises(ConfigError, match="the address of a Redis"):
        state_choice._store_of(AgentSettings.from_environment({"AGENTKIT_STATE_STORE": "redis"}, default_name="A"))
