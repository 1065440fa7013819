"""Events between agents of one process, without a node: what authors rely on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agentkit import BadRequest, BaseAgent, ConfigError, Delivery, Event, TooLarge, rpc, subscribe
from agentkit.testing import running
from tests.agentkit.support import eventually


class Made(Event, topic="ev-test.made"):
    id: int
    note: str = ""


class Gone(Event, topic="ev-test.gone"):
    id: int


class Odd(Event, topic="ev-test.deep.odd"):
    id: int


class Speaker(BaseAgent):
    @rpc
    async def say(self, topic: str, event: dict[str, Any]) -> None:
        await self.publish(topic, event)

    @rpc
    def say_from_thread(self, id: int) -> None:
        self.blocking.publish("ev-test.made", Made(id=id))


class Listener(BaseAgent):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    @subscribe("ev-test.*")
    async def on_any(self, event: Made | Gone) -> None:
        self.heard.append(event)


async def test_events_reach_subscribers_as_what_they_are() -> None:
    async with running(Speaker) as speaker, running(Listener) as listener:
        await speaker.agent.publish("ev-test.made", Made(id=1))
        await speaker.agent.publish("ev-test.gone", {"id": "1"})
        await speaker.agent.publish("ev-test.deep.odd", Odd(id=1))
        await speaker.peer.say_from_thread(id=2)
        await eventually(lambda: len(listener.agent.heard) == 3)
        assert listener.agent.heard == [Made(id=1), Gone(id=1), Made(id=2)]


async def test_a_wrong_event_is_refused_where_it_is_published_and_reaches_nobody() -> None:
    async with running(Speaker) as speaker, running(Listener) as listener:
        for topic, event, match in (
            ("ev-test.made", {"id": "one"}, r"ev-test\.made: id"),
            ("ev-test.mode", {"id": 1}, r"did you mean 'ev-test\.made'"),
            ("ev-test made", {"id": 1}, "no type of event"),
        ):
            with pytest.raises(BadRequest, match=match):
                await speaker.peer.say(topic=topic, event=event)
        with pytest.raises(TooLarge, match="publish where it is"):
            await speaker.agent.publish("ev-test.made", Made(id=1, note="x" * 40_000))
        await speaker.agent.publish("ev-test.made", Made(id=1))
        await eventually(lambda: listener.agent.heard)
        assert listener.agent.heard == [Made(id=1)]
        metrics = metrics_of(listener.agent)
        assert (metrics["received"], metrics["lost"]) == (1, 0)


def metrics_of(agent: BaseAgent) -> dict[str, int]:
    assert agent._wiring is not None
    counters = agent._wiring.events.counters()
    return {name.removeprefix("agent_events_").removesuffix("_total"): read() for name, (_, read) in counters.items()}


class Shapes(BaseAgent):
    def __init__(self) -> None:
        self.heard: dict[str, Any] = {}

    @subscribe("ev-test.made")
    def plain_method(self, topic: str, event: Made) -> None:
        self.heard["thread"] = (topic, event, threading.current_thread() is threading.main_thread())

    @subscribe("ev-test.>")
    async def data(self, event: dict[str, Any]) -> None:
        self.heard["data"] = event

    @subscribe("*.made")
    async def whatever(self, event: Event) -> None:
        self.heard["any"] = event

    @subscribe(">")
    async def whole(self, event: Delivery) -> None:
        self.heard["whole"] = event


async def test_the_annotation_says_what_a_method_gets() -> None:
    async with running(Speaker) as speaker, running(Shapes) as shapes:
        await speaker.agent.publish("ev-test.made", Made(id=1))
        heard = shapes.agent.heard
        await eventually(lambda: len(heard) == 4)
        assert heard["thread"] == ("ev-test.made", Made(id=1), False)
        assert heard["data"] == {"id": 1, "note": ""}
        assert heard["any"] == Made(id=1)
        whole = heard["whole"]
        assert (whole.topic, whole.publisher, whole.number, whole.lost) == ("ev-test.made", "test/Speaker", 1, 0)
        assert (whole.event, whole.at.tzinfo is not None) == (Made(id=1), True)


class Newer(Event):
    """A copy of Made that wants more than the publisher's has."""

    id: int
    colour: str


class Strict(BaseAgent):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    @subscribe("ev-test.made")
    async def on_made(self, event: Newer) -> None:
        self.heard.append(event)

    @subscribe("ev-test.made")
    async def on_all(self, event: Made) -> None:
        self.heard.append(event)
        if event.id == 1:
            raise ValueError("as asked")


async def test_what_raises_or_does_not_fit_is_counted_and_the_next_event_comes() -> None:
    async with running(Speaker) as speaker, running(Strict) as strict:
        for id in (1, 2):
            await speaker.agent.publish("ev-test.made", Made(id=id))
        await eventually(lambda: metrics_of(strict.agent)["failed"] == 3)
        assert strict.agent.heard == [Made(id=1), Made(id=2)]


class Slow(BaseAgent):
    def __init__(self) -> None:
        self.may_go = asyncio.Event()
        self.handled: list[int] = []
        self.most = self.now = 0

    async def work(self, id: int) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await self.may_go.wait()
        await asyncio.sleep(0)
        self.now -= 1
        self.handled.append(id)


class OneByOne(Slow):
    @subscribe("ev-test.made", queue=10)
    async def on_made(self, event: Made) -> None:
        await self.work(event.id)


class FourAtOnce(Slow):
    @subscribe("ev-test.made", concurrency=4)
    async def on_made(self, event: Made) -> None:
        await self.work(event.id)


async def test_a_method_gets_one_event_after_another_and_what_its_queue_does_not_hold_is_lost_and_counted() -> None:
    async with running(Speaker) as speaker, running(OneByOne) as slow:
        await speaker.agent.publish("ev-test.made", Made(id=0))
        await eventually(lambda: slow.agent.now == 1)
        for id in range(1, 16):
            await speaker.agent.publish("ev-test.made", Made(id=id))
        assert metrics_of(slow.agent)["lost"] == 5
        slow.agent.may_go.set()
        await eventually(lambda: len(slow.agent.handled) == 11)
        assert slow.agent.handled == list(range(11))
        assert slow.agent.most == 1


async def test_concurrency_bounds_how_many_run_at_once() -> None:
    async with running(Speaker) as speaker, running(FourAtOnce) as busy:
        for id in range(20):
            await speaker.agent.publish("ev-test.made", Made(id=id))
        await eventually(lambda: busy.agent.now == 4)
        busy.agent.may_go.set()
        await eventually(lambda: len(busy.agent.handled) == 20)
        assert busy.agent.most == 4


async def test_an_agent_that_stops_finishes_what_has_arrived() -> None:
    async with running(Speaker) as speaker:
        async with running(OneByOne) as slow:
            for id in range(5):
                await speaker.agent.publish("ev-test.made", Made(id=id))
            asyncio.get_running_loop().call_later(0.05, slow.agent.may_go.set)
        assert slow.agent.handled == [0, 1, 2, 3, 4]


async def test_an_agent_whose_method_never_ends_stops_all_the_same() -> None:
    async with running(Speaker) as speaker, running(OneByOne, grace_s=0.4) as slow:
        await speaker.agent.publish("ev-test.made", Made(id=0))
        await eventually(lambda: slow.agent.now == 1)
    assert slow.agent.handled == []


async def test_a_publisher_that_never_waits_lets_others_run() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(Speaker) as speaker:
        task = asyncio.create_task(others())
        for id in range(640):
            await speaker.agent.publish("ev-test.made", Made(id=id))
        assert turns >= 9
        task.cancel()


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (lambda: _agent(lambda self: None), r"want '?\(self, event\)"),
        (lambda: _agent(lambda self, a, b, c: None), r"\(self, event\) or \(self, topic, event\)"),
        (lambda: _agent(_wants_odd), r"a pattern that means ev-test\.deep\.odd"),
        (lambda: _agent(_wants_nothing_known), "annotations of types that exist"),
    ],
)
async def test_a_method_that_can_get_no_event_is_refused_at_the_start(method: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        async with running(method()):
            pass


async def _wants_odd(self: Any, event: Odd) -> None: ...
async def _wants_nothing_known(self: Any, event: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def _agent(function: Any) -> type[BaseAgent]:
    return type("Wrong", (BaseAgent,), {"on_it": subscribe("ev-test.*")(function)})


@pytest.mark.parametrize(
    "options", [{"pattern": "a..b"}, {"pattern": "a.*", "concurrency": 0}, {"pattern": "a", "queue": 0}]
)
def test_wrong_options_are_refused_where_they_are_written(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="@subscribe"):
        subscribe(**options)
