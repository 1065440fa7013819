"""Light sleep over real sockets: who falls asleep, who wakes it, what is released, and that callers notice nothing."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
import zmq

from agentkit import (
    BaseAgent,
    Client,
    DeadlineExceeded,
    Event,
    InternalError,
    every,
    health_check,
    keeps_awake,
    rpc,
    subscribe,
)
from agentkit.agent.hibernation.lifecycle import Hibernation
from agentkit.settings import HibernateSettings
from agentkit.testing import Running, running
from agentkit.transport.context import context
from tests.agentkit.support import eventually

SOON = HibernateSettings(after_s=0.05)


class News(Event, topic="news.today"):
    n: int


class Sleeper(BaseAgent):
    """Writes down when it sleeps and wakes, and holds a model in between."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.model: list[int] | None = [1, 2, 3]
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.let_sleep = asyncio.Event()
        self.let_sleep.set()
        self.problem = ""
        self.ticks = 0
        self.seen: list[str] = []

    async def on_hibernate(self) -> None:
        self.diary.append("falls asleep")
        await self.let_sleep.wait()
        self.model = None

    async def on_wake(self) -> None:
        self.diary.append("wakes")
        await self.let_go.wait()
        if self.problem:
            raise RuntimeError(self.problem)
        self.model = [1, 2, 3]

    @rpc
    async def total(self) -> int:
        assert self.model is not None
        return sum(self.model)

    @rpc
    def in_a_thread(self) -> int:
        assert self.model is not None
        return len(self.model)

    @rpc
    async def numbers(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i
            await asyncio.sleep(0.01)

    @rpc(cache="1h")
    async def cached(self) -> int:
        self.diary.append("computes")
        return 7

    @subscribe("news.*")
    async def on_news(self, topic: str, news: dict) -> None:  # type: ignore[type-arg]
        assert self.model is not None
        self.seen.append(topic)

    @keeps_awake
    async def train(self) -> str | None:
        return self.asleep

    @keeps_awake
    def train_in_a_thread(self) -> str | None:
        return self.asleep


def hibernation(agent: BaseAgent) -> Hibernation:
    found = agent._wired.hibernation  # type: ignore[attr-defined]
    assert isinstance(found, Hibernation)
    return found


async def asleep(agent: BaseAgent) -> None:
    await eventually(lambda: agent.asleep == "light")


async def test_an_idle_agent_sleeps_and_the_first_call_wakes_it() -> None:
    async with running(Sleeper, hibernate=SOON) as sleeper:
        await asleep(sleeper.agent)
        assert sleeper.agent.model is None
        assert await sleeper.peer.total() == 6
        assert sleeper.agent.diary[:2] == ["falls asleep", "wakes"]
        await asleep(sleeper.agent)
        assert await sleeper.peer.in_a_thread() == 3


async def test_a_hundred_callers_wake_it_once_and_all_are_answered() -> None:
    async with running(Sleeper) as sleeper:
        await sleeper.fall_asleep()
        sleeper.agent.let_go.clear()
        calls = [asyncio.ensure_future(sleeper.call("total")) for _ in range(100)]
        await eventually(lambda: hibernation(sleeper.agent)._suspension.signs(0).serving == 100)
        sleeper.agent.let_go.set()
        assert await asyncio.gather(*calls) == [6] * 100
        assert sleeper.agent.diary == ["falls asleep", "wakes"]


async def test_who_waits_for_a_slow_waking_ends_in_time_and_the_waking_goes_on() -> None:
    async with running(Sleeper) as sleeper:
        await sleeper.fall_asleep()
        sleeper.agent.let_go.clear()
        with pytest.raises(DeadlineExceeded):
            await sleeper.call("total", timeout=0.1)
        sleeper.agent.let_go.set()
        assert await sleeper.peer.total() == 6
        assert sleeper.agent.diary == ["falls asleep", "wakes"]


async def test_a_call_that_comes_while_it_falls_asleep_waits_and_is_answered() -> None:
    async with running(Sleeper) as sleeper:
        sleeper.agent.let_sleep.clear()
        falling = asyncio.ensure_future(hibernation(sleeper.agent).sleep_now())
        await eventually(lambda: sleeper.agent.diary == ["falls asleep"])
        call = asyncio.ensure_future(sleeper.call("total"))
        await eventually(lambda: hibernation(sleeper.agent)._suspension.signs(0).serving == 1)
        sleeper.agent.let_sleep.set()
        assert await call == 6
        assert await falling == "it was needed again before it slept"


@pytest.mark.soak
async def test_a_call_in_any_moment_of_falling_asleep_is_answered_once(times: int) -> None:
    """200 sleeps, each with calls and an event at moments that the lot chooses."""
    lot = random.Random(11)

    class Light(Sleeper):
        ran = 0

        async def on_hibernate(self) -> None:
            await asyncio.sleep(lot.choice([0, 0.0005, 0.001]))
            await super().on_hibernate()

        async def on_wake(self) -> None:
            await asyncio.sleep(lot.choice([0, 0.0005, 0.001]))
            await super().on_wake()

        @rpc
        async def count(self) -> int:
            assert self.model is not None
            self.ran += 1
            return self.ran

    async with running(Light) as light:
        agent, calls, events = light.agent, 0, 0
        for _ in range(200 * times):
            falling = asyncio.ensure_future(hibernation(agent).sleep_now())
            under_way = []
            for _ in range(lot.randrange(1, 4)):
                await asyncio.sleep(lot.choice([0, 0, 0.0002, 0.001, 0.003]))
                if lot.random() < 0.2:
                    await agent.publish("news.today", News(n=1))
                    events += 1
                else:
                    under_way.append(asyncio.ensure_future(light.call("count")))
            calls += len(under_way)
            await asyncio.gather(*under_way)
            await falling
        await eventually(lambda: len(agent.seen) == events)
        assert agent.ran == calls
        assert not any(agent._error_bus.reported.values())
        told = [line for line in agent.diary if line in ("falls asleep", "wakes")]
        assert all(before != after for before, after in pairwise(told))
        assert told.count("wakes") > 50


async def test_waking_that_fails_is_the_callers_error_and_the_next_call_tries_again() -> None:
    async with running(Sleeper) as sleeper:
        await sleeper.fall_asleep()
        sleeper.agent.problem = "no memory"
        with pytest.raises(InternalError, match="on_wake raised RuntimeError: no memory") as failed:
            await sleeper.call("total", attempts=1)
        assert failed.value.retry_safe
        assert sleeper.agent.asleep == "light"
        assert sleeper.agent._error_bus.reported["error"] == 1
        sleeper.agent.problem = ""
        assert await sleeper.peer.total() == 6


async def test_a_failing_on_hibernate_is_reported_and_it_sleeps_lightly_all_the_same() -> None:
    class Clumsy(Sleeper):
        async def on_hibernate(self) -> None:
            raise RuntimeError("oh")

    asked = []

    async def deepen() -> bool:
        asked.append(True)
        return True

    async with running(Clumsy) as clumsy:
        hibernation(clumsy.agent).deepen = deepen
        assert await hibernation(clumsy.agent).sleep_now("deep") == "it sleeps lightly: on_hibernate failed"
        assert (clumsy.agent.asleep, asked) == ("light", [])
        assert clumsy.agent._error_bus.reported["error"] == 1
        assert await clumsy.peer.total() == 6


async def test_probes_scrapes_and_descriptions_neither_keep_it_awake_nor_wake_it() -> None:
    async with running(Sleeper, hibernate=SOON) as sleeper, httpx.AsyncClient() as http:
        base = sleeper.health_url
        ask = context().socket(zmq.REQ)
        ask.rcvtimeo = 10_000
        ask.connect(sleeper.endpoint)

        def plain() -> bytes:
            ask.send(b'{"action": "health_check"}')
            return ask.recv()

        async def look() -> Any:
            for path in ("live", "ready", "startup", "metrics"):
                assert (await http.get(f"{base}/{path}")).status_code == 200
            await sleeper.call("agentkit.describe")
            await asyncio.to_thread(plain)
            return (await http.get(f"{base}/health")).json()

        try:
            while (await look())["asleep"] is None:
                pass
            told = await look()
            assert (told["asleep"], told["phase"], told["ready"]) == ("light", "ready", True)
            assert sleeper.agent.diary == ["falls asleep"]
            shown = (await http.get(f"{base}/metrics")).text
            assert 'agent_asleep{agent="Sleeper"} 1.0' in shown
            assert 'agent_wakes_total{agent="Sleeper"} 0.0' in shown
        finally:
            ask.close(linger=0)


async def test_a_stream_keeps_it_awake_until_its_end() -> None:
    async with running(Sleeper, hibernate=SOON) as sleeper:
        diaries = [len(sleeper.agent.diary) async for _ in sleeper.peer.numbers(n=20)]
        assert diaries == diaries[:1] * 20
        await asleep(sleeper.agent)


async def test_an_event_wakes_it_before_it_is_handled() -> None:
    async with running(Sleeper) as sleeper:
        await sleeper.fall_asleep()
        await sleeper.agent.publish("news.today", News(n=1))
        await eventually(lambda: sleeper.agent.seen == ["news.today"])
        assert sleeper.agent.diary == ["falls asleep", "wakes"]


async def test_blocks_and_stay_awake_keep_it_awake_and_wake_it() -> None:
    async with running(Sleeper) as sleeper:
        agent = sleeper.agent
        async with agent.keeps_awake("training"):
            assert await hibernation(agent).sleep_now() == "busy with training"
        await sleeper.fall_asleep()
        assert await agent.train() is None
        await sleeper.fall_asleep()
        assert await asyncio.to_thread(agent.train_in_a_thread) is None
        await sleeper.fall_asleep()
        agent.stay_awake(6000)
        await eventually(lambda: agent.asleep is None and hibernation(agent)._suspension.wake_locks.is_awake)
        assert (await hibernation(agent).sleep_now()).startswith("stays awake for another ")
        assert agent.diary == ["falls asleep", "wakes"] * 3


async def test_a_block_that_could_not_wake_it_does_not_begin() -> None:
    async with running(Sleeper) as sleeper:
        await sleeper.fall_asleep()
        sleeper.agent.problem = "no memory"
        with pytest.raises(InternalError):
            await sleeper.agent.train()
        with pytest.raises(InternalError):
            await asyncio.to_thread(sleeper.agent.train_in_a_thread)
        sleeper.agent.problem = ""
        await sleeper.wake()
        await sleeper.fall_asleep()  # nothing is left of the blocks


async def test_what_it_does_by_itself_does_not_keep_it_awake_and_is_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentkit.agent.hibernation.timer_throttle.SLOWED", 1_000_000)
    monkeypatch.setattr("agentkit.agent.hibernation.timer_throttle.SLOWEST_S", 3600.0)

    class Busy(Sleeper):
        usual = 0

        @every("10ms")
        async def tick(self) -> None:
            self.ticks += 1

        @every("10ms", slows=False)
        async def tock(self) -> None:
            self.usual += 1

        async def run(self) -> None:
            while True:
                await asyncio.sleep(0.01)

    async with running(Busy, hibernate=SOON) as busy:
        await asleep(busy.agent)
        ticks, usual = busy.agent.ticks, busy.agent.usual
        await eventually(lambda: busy.agent.usual >= usual + 20)
        assert busy.agent.ticks <= ticks + 1
        hibernation(busy.agent).close()
        await busy.wake()
        await eventually(lambda: busy.agent.ticks >= ticks + 20)


async def test_a_timer_that_keeps_it_awake_wakes_it() -> None:
    class Worker(Sleeper):
        @every("20ms")
        @keeps_awake
        async def work(self) -> None:
            assert self.model is not None
            self.ticks += 1

    async with running(Worker) as worker:
        await hibernation(worker.agent).sleep_now()  # and may be awake again already
        await eventually(lambda: "wakes" in worker.agent.diary)
        await eventually(lambda: worker.agent.ticks > 2)
        assert not any(worker.agent._error_bus.reported.values())


async def test_sleep_releases_sockets_channels_threads_and_answers_and_they_come_again() -> None:
    class Talkative(Sleeper):
        @rpc
        async def ask(self) -> int:
            return int(await self.peer("Sleeper").total())

        @rpc
        def ask_in_a_thread(self) -> int:
            return int(self.blocking.peer("Sleeper").total())

    async with running(Sleeper) as other, running(Talkative, peers={"Sleeper": other.endpoint}) as sleeper:
        agent = sleeper.agent
        assert [await sleeper.call(method) for method in ("ask", "ask_in_a_thread", "cached")] == [6, 6, 7]
        with agent.sockets.lease(zmq.PUSH, "tcp://127.0.0.1:1"):
            assert await hibernation(agent).sleep_now() == "a raw socket is lent"
        runtime: Any = agent._wiring
        assert runtime.caller._channels
        assert agent.sockets.statistics().idle == 1
        threads = threading.active_count()
        await sleeper.fall_asleep()
        assert not runtime.caller._channels
        assert agent.sockets.statistics().idle == 0
        await eventually(lambda: threading.active_count() < threads)
        for _ in range(2):
            assert [await sleeper.call(method) for method in ("ask", "ask_in_a_thread", "cached")] == [6, 6, 7]
        assert agent.diary.count("computes") == 2


async def test_an_idempotency_key_is_remembered_over_a_sleep() -> None:
    class Counting(Sleeper):
        @rpc
        async def count(self) -> int:
            self.ticks += 1
            return self.ticks

    async with running(Counting) as counting:
        assert await counting.call("count", idempotency_key="once") == 1
        await counting.fall_asleep()
        assert await counting.call("count", idempotency_key="once") == 1
        assert counting.agent.ticks == 1


async def test_garbage_is_collected_and_the_memory_that_came_back_is_told() -> None:
    class Heavy(Sleeper):
        async def on_start(self) -> None:
            self.loop_of_garbage: list[Any] = [bytearray(b"x" * (64 << 20))]
            self.loop_of_garbage.append(self.loop_of_garbage)

        async def on_hibernate(self) -> None:
            del self.loop_of_garbage

    gc.disable()
    try:
        async with running(Heavy) as heavy:
            await heavy.fall_asleep()
            told = hibernation(heavy.agent).summary()
            assert told["given_back_mb"] > 50
            assert (told["depth"], told["wakes"]) == ("light", 0)
            await heavy.wake()
            told = hibernation(heavy.agent).summary()
            assert (told["depth"], told["wakes"]) == ("", 1)
            assert told["wake_s"] > 0
    finally:
        gc.enable()


async def test_health_checks_go_on_while_it_sleeps_and_see_that_it_does() -> None:
    class Checked(Sleeper):
        @health_check(interval="20ms")
        async def model_is_there(self) -> None:
            self.seen.append(str(self.asleep))
            assert self.asleep or self.model

    async with running(Checked) as checked:
        await checked.fall_asleep()
        await eventually(lambda: "light" in checked.agent.seen)
        await checked.wake()
        assert checked.agent._wired.running
        checked.agent.seen.clear()
        await eventually(lambda: len(checked.agent.seen) >= 3)
        assert set(checked.agent.seen) == {"None"}


async def test_an_agent_that_is_told_to_stop_while_it_sleeps_stops_and_answers_who_waits() -> None:
    class Stopping(Sleeper):
        async def on_stop(self) -> None:
            self.diary.append(f"stops {self.asleep}")

    async with running(Stopping) as one:
        await one.fall_asleep()
    assert one.agent.diary == ["falls asleep", "stops light"]

    stopping = running(Stopping)
    two = await stopping.__aenter__()
    async with Client(peers={"Stopping": two.endpoint}) as client:
        await two.fall_asleep()
        two.agent.let_go.clear()
        call = asyncio.ensure_future(client.call("Stopping", "total"))
        await eventually(lambda: "wakes" in two.agent.diary)
        asyncio.get_running_loop().call_later(0.05, two.agent.let_go.set)
        await stopping.__aexit__(None, None, None)
        assert await call == 6
    assert two.agent.diary == ["falls asleep", "wakes", "stops None"]


# -- the seam to deep sleep -------------------------------------------------------------------------------------------


async def deepening(sleeper: Running[Sleeper], *answers: bool) -> list[str]:
    """What `deepen` did: it answers so, then never."""
    told: list[str] = []
    rest = list(answers)

    async def deepen() -> bool:
        told.append("asked")
        if rest:
            return rest.pop(0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("broken off")
            raise
        return True

    hibernation(sleeper.agent).deepen = deepen
    return told


async def test_deep_sleep_comes_after_light_and_is_broken_off_by_a_call() -> None:
    async with running(Sleeper, hibernate=HibernateSettings(after_s=0.05, depth="deep")) as sleeper:
        told = await deepening(sleeper)
        await eventually(lambda: told == ["asked"])
        assert sleeper.agent.asleep == "light"
        assert await sleeper.peer.total() == 6
        assert told[:2] == ["asked", "broken off"]


async def test_deep_sleep_that_can_not_be_stays_light_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentkit.agent.hibernation.deep_sleep_retries.AGAIN_S", (0.01, 0.02))
    async with running(Sleeper) as sleeper:
        told = await deepening(sleeper, False, False, True)
        hibernation(sleeper.agent).why_light = ""
        assert await hibernation(sleeper.agent).sleep_now("deep") == "it sleeps lightly: it can not sleep deep"
        await eventually(lambda: told == ["asked"] * 3)
        await asyncio.sleep(0.05)
        assert told == ["asked"] * 3
        with pytest.raises(Exception, match="deep sleep"):
            await sleeper.wake()


async def test_an_operators_word_says_whether_it_sleeps_deep() -> None:
    async with running(Sleeper) as sleeper:
        assert (
            await hibernation(sleeper.agent).sleep_now("deep")
            == "it sleeps lightly: neither a node nor systemd holds its sockets, so nobody would wake it"
        )
        await sleeper.wake()
        await deepening(sleeper, True)
        assert await hibernation(sleeper.agent).sleep_now("deep") == ""
