"""The way of an error report to its node: once, though nodes go and come; and what is left when the agent ends."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentkit import BaseAgent, health_check, rpc
from agentkit.agent import error_exporter
from agentkit.agent.error_exporter import ErrorExporter, last_words
from agentkit.directory.mesh import MeshDirectory
from agentkit.errorbus import ErrorBus
from agentkit.errors import HandlerError
from agentkit.testing import running
from tests.agentkit.directory.test_mesh import SmallNode, a_node
from tests.agentkit.support import eventually

SENDER = {"id": "m1/A", "incarnation": 3}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SOON_S", 0.005), ("BETWEEN_S", 0.02), ("AGAIN_S", 0.05), ("STORED_WITHIN_S", 0.3)):
        monkeypatch.setattr(error_exporter, name, seconds)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ak-") as folder:
        yield Path(folder) / "node.sock"


class Counting:
    """A node that stores by number, and answers as it is told."""

    def __init__(self, node: SmallNode) -> None:
        self.taken: dict[tuple[str, int], int] = {}
        self.offers = 0
        self.answers: list[Any] = []
        node.answer = self.answer

    def answer(self, operation: str, arguments: dict[str, Any]) -> Any:
        if operation != "report":
            return "ok", {}
        self.offers += 1
        refusal = self.answers.pop(0) if self.answers else None
        if refusal:
            return "error", {"code": refusal, "message": "no", "details": {}}
        assert arguments["id"] == "m1/A"
        key = arguments["source"], arguments["number"]
        self.taken[key] = sum(group["count"] for group in arguments["groups"])
        return "ok", {}

    @property
    def reports(self) -> int:
        return sum(self.taken.values())


@asynccontextmanager
async def sending(path: Path, bus: ErrorBus) -> AsyncIterator[ErrorExporter]:
    made: list[ErrorExporter] = []

    async def on_connected(_: MeshDirectory) -> None:
        made[0].connected()

    directory = MeshDirectory(str(path), on_connected=on_connected)
    made.append(ErrorExporter(bus, SENDER, directory.ask))
    try:
        yield made[0]
    finally:
        made[0].close()
        await directory.close()


async def test_reports_of_any_thread_arrive_together(path: Path) -> None:
    bus = ErrorBus()
    async with a_node(path) as node, sending(path, bus):
        counting = Counting(node)

        def storm() -> None:
            for n in range(1000):
                bus.report("error", f"try {n}")

        threads = [threading.Thread(target=storm) for _ in range(3)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        await eventually(lambda: counting.reports == 3000)
        assert counting.offers < 100
        await eventually(lambda: bus.waiting == 0)


async def test_what_is_reported_while_the_node_is_away_arrives_when_it_is_back(path: Path) -> None:
    bus = ErrorBus()
    async with sending(path, bus):
        for n in range(500):
            bus.report("error", f"try {n}")
        await asyncio.sleep(0.1)
        assert bus.waiting == 500
        async with a_node(path) as node:
            counting = Counting(node)
            await eventually(lambda: counting.reports == 500, within_s=10)
            await eventually(lambda: bus.waiting == 0)


async def test_a_batch_that_was_not_answered_is_offered_again_with_its_number(path: Path) -> None:
    bus = ErrorBus()
    async with a_node(path) as node, sending(path, bus):
        counting = Counting(node)
        node.answer = None  # it hears and says nothing: it may have stored it, or not
        bus.report("error", "one")
        await eventually(lambda: any(operation == "report" for operation, _ in node.asked))
        bus.report("error", "one")
        node.answer = counting.answer
        await eventually(lambda: counting.reports == 2)
        offers = [arguments for operation, arguments in node.asked if operation == "report"]
        assert offers[0] == offers[1]
        assert [number for _, number in counting.taken] == [1, 2]


async def test_a_node_that_can_not_store_is_asked_again_later(path: Path) -> None:
    bus = ErrorBus()
    async with a_node(path) as node, sending(path, bus):
        counting = Counting(node)
        counting.answers = ["overloaded", "overloaded"]
        bus.report("error", "one")
        await eventually(lambda: counting.reports == 1)
        assert counting.offers == 3
        assert bus.lost == 0


async def test_a_batch_that_a_node_refuses_for_good_does_not_hold_up_the_next(path: Path) -> None:
    bus = ErrorBus()
    async with a_node(path) as node, sending(path, bus):
        counting = Counting(node)
        counting.answers = ["bad_request"]
        bus.report("error", "one")
        await eventually(lambda: bus.lost == 1)
        bus.report("error", "two")
        await eventually(lambda: counting.reports == 1)


async def test_reports_made_after_the_loop_was_closed_are_last_words(path: Path) -> None:
    bus = ErrorBus()

    def a_life() -> None:
        async def live() -> None:
            ErrorExporter(bus, SENDER, None)

        asyncio.run(live())
        for n in range(1000):  # its loop is closed now
            bus.report("error", f"try {n}")

    async with a_node(path) as node:
        counting = Counting(node)
        await asyncio.to_thread(a_life)
        assert bus.waiting == 1000
        assert await asyncio.to_thread(last_words, bus, str(path), SENDER)
        assert counting.reports == 1000


async def test_last_words_end_in_time_though_nobody_answers(path: Path) -> None:
    bus = ErrorBus()
    bus.report("error", "one")
    assert not last_words(bus, str(path), SENDER, 0.1), "nobody is there"
    assert not last_words(bus, None, SENDER, 0.1), "it was started by hand"
    async with a_node(path):
        assert not await asyncio.to_thread(last_words, bus, str(path), SENDER, 0.1), "it says nothing"
    assert bus.waiting == 1


class Breaks(BaseAgent):
    is_ill = False

    @rpc
    async def divide(self, by: int) -> float:
        return 1 / by

    @rpc
    def in_a_thread(self) -> None:
        raise LookupError("no such thing")

    @health_check(interval="20ms")
    async def well(self) -> None:
        if self.is_ill:
            raise RuntimeError("ill")


async def test_an_agent_counts_what_goes_wrong_by_itself() -> None:
    async with running(Breaks) as agent:
        for method, arguments in (
            ("divide", {"by": 0}),
            ("divide", {"by": 0}),
            ("in_a_thread", {}),
            ("divide", {"by": 1}),
        ):
            with contextlib.suppress(HandlerError):
                await agent.call(method, arguments)
        agent.agent.is_ill = True
        bus = agent.agent._error_bus
        await eventually(lambda: bus.reported["warning"] >= 1 and bus.reported["error"] >= 4)
        groups = {(group.kind, group.severity): group for group in bus.groups}
        assert groups["ZeroDivisionError", "error"].count == 2
        assert groups["ZeroDivisionError", "error"].context == {"method": "divide"}
        assert "1 / by" in groups["ZeroDivisionError", "error"].trace
        assert groups["LookupError", "error"].message == "in_a_thread raised LookupError: no such thing"
        assert groups["check well", "warning"].count == 1
        assert groups["check well", "error"].count == 1


async def test_a_report_knows_the_exception_that_is_being_handled_and_never_raises() -> None:
    async with running(Breaks) as agent:
        try:
            raise OSError("disk")
        except OSError:
            agent.agent.report_error("critical", "saving failed", event=1, message_="x", password="hunter2")
        BaseAgent.report_error(agent.agent, object(), object(), a=object())  # type: ignore[arg-type]
        (first, _) = agent.agent._error_bus.groups
        assert (first.kind, first.severity, first.context["password"]) == ("OSError", "critical", "***")
    agent.agent.report_error("error", "after the end")
    BaseAgent.report_error(Breaks(), "error", "never started")


async def test_errors_are_metrics() -> None:
    async with running(Breaks) as agent:
        agent.agent.report_error("warn", "x")
        for _ in range(50):
            agent.agent.report_error("critical", "y")
        text = agent.agent._wiring.introspection.metrics().decode()  # type: ignore[union-attr]
    assert 'agent_errors_reported_total{agent="Breaks",severity="warning"} 1.0' in text
    assert 'agent_errors_reported_total{agent="Breaks",severity="critical"} 50.0' in text
    assert 'agent_errors_suppressed_total{agent="Breaks"} 30.0' in text
