"""What an agent remembers: restored before `on_start`, saved when it changes, when asked, and when the agent stops."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, Field, ValidationError

from agentkit import AgentState, BaseAgent, ConfigError, StartupError, StateFenced, StateNotSaved, rpc
from agentkit.agent import state_keeper
from agentkit.agent.selfreport import SelfReports
from agentkit.agent.state_keeper import StateKeeper
from agentkit.errorbus import ErrorBus
from agentkit.errors import StateUnreachable
from agentkit.names import Incarnation
from agentkit.state.model import MAX_STATE_BYTES
from agentkit.state.sqlite import FILE_NAME, SqliteStore
from agentkit.state.store import Snapshot
from agentkit.testing import MemoryStore, running
from agentkit.transport.gate import way_of
from tests.agentkit.support import PATIENCE_S, eventually


class Counter(BaseAgent):
    class State(AgentState):
        count: int = Field(0, ge=0)
        names: dict[str, int] = {}
        began: datetime | None = None
        raw: bytes = b""
        rate: float = 0.0

    state: State
    seen: ClassVar[list[int]] = []

    async def on_start(self) -> None:
        self.seen.append(self.state.count)

    async def on_stop(self) -> None:
        self.state.count += 1000

    @rpc
    async def add(self, name: str = "a") -> int:
        self.state.count += 1
        self.state.names[name] = self.state.names.get(name, 0) + 1
        return self.state.count

    @rpc
    async def keep(self) -> None:
        await self.save()


class Versioned(BaseAgent):
    class State(AgentState):
        version = 3
        total: int = 0

    state: State

    @classmethod
    def migrate_state(cls, version: int, data: dict[str, Any]) -> dict[str, Any]:
        if version == 1:
            return {"total": data["count"]}
        return {"total": data["sum"]}


class Forgetful(BaseAgent):
    @rpc
    async def keep(self) -> None:
        await self.save()


class Holding(MemoryStore):
    """Fails while `why` is set, and counts."""

    why: Exception | None = None
    tried = 0

    def claim(self, incarnation: Incarnation) -> None:
        if isinstance(self.why, StateUnreachable):
            self.tried += 1
            raise self.why
        super().claim(incarnation)

    def save(self, snapshot: Snapshot) -> None:
        self.tried += 1
        if self.why is not None:
            raise self.why
        super().save(snapshot)


def saved(version: int, data: bytes, number: int = 1) -> MemoryStore:
    store = MemoryStore()
    store.save(Snapshot.of(number, version, 0, 1.0, data))
    return store


# -- from one life to the next


async def test_the_next_life_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    async with running(Counter, data_dir=tmp_path) as counter:
        assert await counter.peer.add(name="x") == 1
        counter.agent.state.began = datetime(2026, 1, 2, tzinfo=UTC)
        counter.agent.state.raw = b"\xff\x00"
        counter.agent.state.rate = float("inf")
    Counter.seen.clear()
    async with running(Counter, data_dir=tmp_path) as counter:
        assert Counter.seen == [1001], "on_start has it, with what on_stop did"
        assert counter.agent.state.names == {"x": 1}
        assert counter.agent.state.began == datetime(2026, 1, 2, tzinfo=UTC)
        assert (counter.agent.state.raw, counter.agent.state.rate) == (b"\xff\x00", float("inf"))


async def test_a_test_says_what_an_agent_remembers() -> None:
    async with running(Counter, state={"count": 7}) as counter:
        assert await counter.peer.add() == 8
    async with running(Counter, state=Counter.State(count=3)) as counter:
        assert await counter.peer.add() == 4
    with pytest.raises(ConfigError, match="a class State"):
        async with running(Forgetful, state={"count": 7}):
            pass


async def test_an_agent_without_state_has_nothing_to_save_and_imports_nothing() -> None:
    async with running(Forgetful) as agent:
        assert not (agent.agent.data_dir / FILE_NAME).exists()
        with pytest.raises(Exception, match="Forgetful has no `class State"):
            await agent.peer.keep()
        await agent.agent._wired.save_state()  # before it sleeps: there is nothing to keep


async def test_a_start_that_fails_saves_nothing(tmp_path: Path) -> None:
    class Failing(Counter):
        async def on_start(self) -> None:
            self.state.count = 99
            raise RuntimeError("no")

    async with running(Counter, data_dir=tmp_path, name="A") as counter:
        await counter.peer.add()
    with pytest.raises(StartupError):
        async with running(Failing, data_dir=tmp_path, name="A"):
            pass
    async with running(Counter, data_dir=tmp_path, name="A") as counter:
        assert counter.agent.state.count == 1001


# -- saving


async def test_save_returns_when_it_is_kept_and_does_nothing_when_nothing_changed() -> None:
    store = Holding()
    async with running(Counter, state=store) as counter:
        await counter.peer.add()
        await counter.peer.keep()
        assert store.newest is not None
        assert b'"count":1' in store.newest.data
        await counter.peer.keep()
        assert (store.newest.number, store.tried) == (1, 1)


async def test_what_changes_is_saved_by_itself() -> None:
    store = Holding()
    async with running(Counter, state=store, state_every_s=0.05) as counter:
        await counter.peer.add()
        await eventually(lambda: store.newest is not None and b'"count":1' in store.newest.data)


async def test_a_save_that_fails_is_reported_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_keeper, "RETRY_S", 0.05)
    store = Holding()
    async with running(Counter, state=store, state_every_s=0.05) as counter:
        store.why = StateNotSaved("the disk is full")
        await counter.peer.add()
        with pytest.raises(Exception, match="the disk is full"):
            await counter.peer.keep()
        await eventually(lambda: store.tried > 2)
        assert counter.agent._error_bus.reported["error"] > 0
        assert "agent_state_save_failures_total" in await metrics(counter.health_url)
        store.why = None
        await eventually(lambda: store.newest is not None)


async def test_what_is_saved_while_a_save_is_under_way_is_saved_after_it() -> None:
    store = Holding()
    async with running(Counter, state=store) as counter:

        async def add_and_keep() -> None:
            await counter.peer.add()
            await counter.peer.keep()

        await asyncio.gather(*(add_and_keep() for _ in range(20)))
        assert store.newest is not None
        assert b'"count":20' in store.newest.data


async def test_another_incarnations_state_is_not_written_and_the_agent_is_told() -> None:
    store = Holding()
    async with running(Counter, state=store) as counter:
        store.claim(Incarnation(5))
        await counter.peer.add()
        with pytest.raises(StateFenced, match="incarnation 5"):
            await counter.agent.save()
        with pytest.raises(StateFenced):
            await counter.agent.save()
        assert counter.agent._error_bus.reported["critical"] == 1
    assert store.newest is None


async def test_what_can_not_be_kept_is_refused_and_what_was_kept_stays() -> None:
    store = Holding()
    async with running(Counter, state=store) as counter:
        await counter.peer.add()
        await counter.agent.save()
        counter.agent.state.names["x"] = "not a number"  # type: ignore[assignment]
        with pytest.raises(StateNotSaved, match=r"can't be packed.*Expected `int`"):
            await counter.agent.save()
        counter.agent.state.names.clear()
        counter.agent.state.raw = bytes(MAX_STATE_BYTES)
        with pytest.raises(StateNotSaved, match="want at most 16,777,216"):
            await counter.agent.save()
        counter.agent.state = Counter.State.model_construct()
        await counter.agent.save()
        counter.agent.state = object()  # type: ignore[assignment]
        with pytest.raises(StateNotSaved, match="of type object"):
            await counter.agent.save()
    assert store.newest is not None
    assert store.newest.number == 2


async def test_a_value_that_does_not_fit_is_refused_where_it_is_assigned() -> None:
    async with running(Counter) as counter:
        with pytest.raises(ValidationError):
            counter.agent.state.count = -1


# -- beside a predecessor, as in a roll by overlap


class Remembering:
    """What a keeper needs of an agent."""

    name = "A"
    State = Counter.State
    state: Counter.State


@pytest.fixture
async def beside() -> AsyncIterator[tuple[StateKeeper, Remembering, Holding]]:
    """The keeper of incarnation 2, which has restored what incarnation 1, which serves beside it, had saved."""
    agent, store = Remembering(), Holding()
    store.claim(Incarnation(1))
    store.save(Snapshot.of(1, 1, 1, 1.0, b'{"count":1}'))
    made = StateKeeper(
        agent, store, incarnation=Incarnation(2), every_s=0, reports=SelfReports(ErrorBus(), retries=3)
    )  # fmt: skip
    await made.restore(is_alone=False)
    yield made, agent, store
    await made.close()


Beside = tuple[StateKeeper, Remembering, Holding]


async def test_while_a_predecessor_is_there_it_saves_and_nobody_else(beside: Beside) -> None:
    made, agent, store = beside
    assert agent.state.count == 1
    agent.state.count = 5
    with pytest.raises(StateNotSaved, match="the process before this one has the state until it has ended"):
        await made.save()
    store.save(Snapshot.of(2, 1, 1, 2.0, b'{"count":2}'))
    await made.claim()
    await made.save()
    assert [(it.number, it.data[:10]) for it in store.load().snapshots] == [(3, b'{"count":5'), (2, b'{"count":2')]


async def test_a_store_that_is_away_when_the_predecessor_ends_is_claimed_with_the_next_save(beside: Beside) -> None:
    made, agent, store = beside
    store.why = StateUnreachable("away")
    await made.claim()
    agent.state.count = 5
    with pytest.raises(StateNotSaved, match="away"):
        await made.save()
    assert made.told()["trouble"] == "away"
    store.why = None
    await made.finish(PATIENCE_S, saves=True)
    assert store.newest is not None
    assert (store.newest.incarnation, store.newest.number) == (2, 2)


# -- reading


async def test_a_damaged_snapshot_falls_back_to_the_one_before_and_says_so(tmp_path: Path) -> None:
    for _ in range(2):
        async with running(Counter, data_dir=tmp_path) as counter:
            await counter.peer.add()
    store = SqliteStore(tmp_path)
    newest = store.load().snapshots[0]
    store._opened().execute(f"UPDATE snapshot_{newest.place} SET data = x'00'")
    store.close()
    async with running(Counter, data_dir=tmp_path) as counter:
        assert counter.agent.state.count == 1001
        assert counter.agent._error_bus.reported["critical"] == 1
        told = counter.agent._wired._keeper.told()  # type: ignore[attr-defined]
        assert "snapshot 2 does not fit its checksum: began with the one before" in told["fallback"]
        await counter.agent.save()
    async with running(Counter, data_dir=tmp_path) as counter:
        assert counter.agent.state.count == 2001, "the damaged one is replaced although nothing had changed"
        assert counter.agent._error_bus.reported["critical"] == 0


async def test_an_agent_does_not_begin_empty_when_everything_is_damaged(tmp_path: Path) -> None:
    async with running(Counter, data_dir=tmp_path) as counter:
        await counter.peer.add()
    store = SqliteStore(tmp_path)
    store._opened().execute("UPDATE snapshot_1 SET data = x'00'")
    store.close()
    with pytest.raises(
        StartupError, match=r"snapshot 1 does not fit its checksum.*put a copy back, or move .*agentkit-state\.db"
    ):
        async with running(Counter, data_dir=tmp_path):
            pass


async def test_a_store_that_is_away_is_waited_for_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_keeper, "_LOOK_AGAIN_S", 0.01)
    store = Holding()
    store.why = StateUnreachable("away")
    async with asyncio.TaskGroup() as tasks:

        async def heal() -> None:
            await eventually(lambda: store.tried > 2)
            store.why = None

        tasks.create_task(heal())
        async with running(Counter, state=store) as counter:
            assert await counter.peer.add() == 1
    monkeypatch.setattr(state_keeper, "PATIENCE_S", 0.0)
    store.why = StateUnreachable("away for good")
    with pytest.raises(StartupError, match="the state can't be restored: away for good"):
        async with running(Counter, state=store):
            pass


# -- versions


@pytest.mark.parametrize(("version", "data"), [(1, b'{"count": 5}'), (2, b'{"sum": 5}'), (3, b'{"total":5}')])
async def test_an_older_state_is_turned_into_todays(version: int, data: bytes) -> None:
    store = saved(version, data)
    async with running(Versioned, state=store) as agent:
        assert agent.agent.state.total == 5
    assert store.newest is not None
    assert (store.newest.version, store.newest.data) == (3, b'{"total":5}')


@pytest.mark.parametrize(
    ("store", "why"),
    [
        (saved(2, b'{"wrong": 1}'), "snapshot 1 of version 2: migrate_state raised KeyError: 'sum'"),
        (saved(2, b'{"sum": "x"}'), "what migrate_state returned: it does not fit .*State of version 3: total"),
        (saved(3, b'{"count": 1}'), "it does not fit .*State of version 3: count: Extra inputs.*raise State.version"),
    ],
)
async def test_a_state_that_fits_no_class_fails_the_start_and_stays(store: MemoryStore, why: str) -> None:
    before = store.newest
    with pytest.raises(StartupError, match=why):
        async with running(Versioned, state=store):
            pass
    assert store.newest is before


async def test_without_migrate_state_another_version_is_refused() -> None:
    with pytest.raises(StartupError, match="Counter has no migrate_state that turns it into version 1"):
        async with running(Counter, state=saved(2, b"{}")):
            pass


# -- classes


def test_a_state_needs_defaults_and_the_right_base() -> None:
    with pytest.raises(ConfigError, match="no default for count"):

        class Wanting(BaseAgent):
            class State(AgentState):
                count: int

    with pytest.raises(ConfigError, match="want a subclass of AgentState"):

        class Wrong(BaseAgent):
            class State(BaseModel):  # type: ignore[assignment]
                count: int = 0

    class Own(BaseAgent):
        class State:  # type: ignore[assignment]
            """An author's own affair."""

    assert not Own.keeps_state


def test_an_agent_with_state_hands_over_unless_somebody_says_otherwise() -> None:
    class Overlapping(Counter):
        roll = "overlap"

    assert way_of(Counter, {}) == "handover"
    assert way_of(Overlapping, {}) == "overlap"
    assert way_of(Counter, {"AGENTKIT_ROLL": "overlap"}) == "overlap"
    assert way_of(Forgetful, {}) == "overlap"


async def metrics(health_url: str) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"{health_url}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


async def test_metrics_of_the_state_are_there_for_agents_that_have_one() -> None:
    async with running(Counter) as counter, running(Forgetful) as other:
        await counter.peer.add()
        await counter.agent.save()
        shown = await metrics(counter.health_url)
        assert 'agent_state_saves_total{agent="Counter"} 1.0' in shown
        assert f'agent_state_bytes{{agent="Counter"}} {len(counter.agent.state.model_dump_json())}.0' in shown
        assert "agent_state_save_seconds" in shown
        assert "agent_state" not in await metrics(other.health_url)
