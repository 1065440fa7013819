"""Calls between agents as authors write them: over real sockets, in one process."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import datetime as dt
import json
import threading
import time
import urllib.request
import uuid
from typing import Any

import pytest
import zmq

from agentkit import (
    AgentUnknown,
    BadRequest,
    BaseAgent,
    CallCancelled,
    ConfigError,
    DeadlineExceeded,
    HandlerError,
    NotFound,
    Overloaded,
    PeerLost,
    ServePolicy,
    TooLarge,
    UnknownMethod,
    Unreachable,
    rpc,
)
from agentkit.agent.thread_bridge import BlockingOnLoop
from agentkit.testing import running
from tests.agentkit.support import eventually, outcome, raw


@dataclasses.dataclass
class Parcel:
    id: uuid.UUID
    sent: dt.datetime
    content: bytes
    note: str | None = None


class Helper(BaseAgent):
    """Helps."""

    def __init__(self) -> None:
        self.calls = 0
        self.seen: list[Any] = []
        self.let_go = threading.Event()

    @rpc
    async def echo(self, x: int) -> int:
        self.calls += 1
        return x

    @rpc
    async def forward(self, parcel: Parcel) -> Parcel:
        assert type(parcel.id) is uuid.UUID
        return dataclasses.replace(parcel, note="forwarded")

    @rpc
    async def find(self, id: int) -> dict[str, int]:
        raise NotFound(f"no {id}", details={"id": id})

    @rpc
    async def fail(self) -> None:
        raise ValueError("no such colour")

    @rpc
    def block(self) -> str:
        self.let_go.wait(20)
        return threading.current_thread().name

    @rpc(timeout="60s")
    async def told_deadline(self) -> float:
        assert self.deadline is not None
        return self.deadline.left_s()

    @rpc
    def told_deadline_in_thread(self) -> float:
        assert self.deadline is not None
        return self.deadline.left_s()

    @rpc
    async def wait(self) -> None:
        await asyncio.sleep(30)

    @rpc
    async def large(self, size: int) -> str:
        return "x" * size

    @rpc
    async def ask_back(self, target: str, timeout: float | None = None) -> Any:
        return await self.call(target, "told_deadline", timeout=timeout)

    @rpc
    def ask_blocking(self, target: str) -> int:
        return int(self.blocking.peer(target).echo(x=7))

    @rpc
    async def block_the_loop(self) -> Any:
        return self.blocking.call("Helper", "echo", {"x": 1})

    @rpc
    async def in_background(self) -> str:
        async def later() -> None:
            await asyncio.sleep(self.deadline_of_the_call.left_s() + 0.05)
            self.seen.append((self.deadline, await outcome(self.call("Other", "echo", {"x": 3}))))

        assert self.deadline is not None
        self.deadline_of_the_call = self.deadline
        self.task = asyncio.create_task(later())
        return "accepted"


class Other(Helper):
    """Another one."""


async def test_typed_values_travel_to_a_handler_and_back() -> None:
    parcel = Parcel(uuid.uuid4(), dt.datetime(2026, 1, 2, tzinfo=dt.UTC), b"\x00\xff")
    async with running(Helper) as helper:
        back = await helper.peer.forward(parcel=parcel)
        assert back == {
            "id": str(parcel.id),
            "sent": parcel.sent,
            "content": parcel.content,
            "note": "forwarded",
        }


async def test_a_wrong_call_names_the_argument_and_does_not_run() -> None:
    async with running(Helper) as helper:
        with pytest.raises(BadRequest, match="echo: x: Input should be a valid integer"):
            await helper.call("echo", {"x": "many"})
        with pytest.raises(BadRequest, match="y: Extra inputs"):
            await helper.peer.echo(x=1, y=2)
        with pytest.raises(BadRequest, match="object does not travel"):
            await helper.peer.echo(x=object())
        with pytest.raises(UnknownMethod, match="no method 'eco'") as caught:
            await helper.peer.eco()
        assert "echo" in caught.value.details["methods"]
        assert helper.agent.calls == 0


async def test_a_handlers_exception_arrives_as_handler_error_without_traceback_and_the_agent_serves_on() -> None:
    async with running(Helper) as helper:
        with pytest.raises(HandlerError, match="ValueError: no such colour") as caught:
            await helper.peer.fail()
        assert (caught.value.type, caught.value.traceback, caught.value.retry_safe) == ("ValueError", None, False)
        assert await helper.peer.echo(x=1) == 1


async def test_the_traceback_is_sent_only_with_agentkit_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTKIT_DEBUG", "1")
    async with running(Helper) as helper:
        with pytest.raises(HandlerError) as caught:
            await helper.peer.fail()
        assert 'raise ValueError("no such colour")' in (caught.value.traceback or "")


async def test_not_found_arrives_as_itself() -> None:
    async with running(Helper) as helper:
        with pytest.raises(NotFound, match="no 4") as caught:
            await helper.peer.find(id=4)
        assert caught.value.details == {"id": 4}


async def test_plain_handlers_run_on_threads_while_calls_and_health_are_answered() -> None:
    async with running(Helper) as helper:
        blocked = [asyncio.create_task(helper.peer.block()) for _ in range(8)]
        await asyncio.sleep(0.05)
        assert await helper.peer.echo(x=1) == 1
        body = await asyncio.to_thread(lambda: urllib.request.urlopen(f"{helper.health_url}/health", timeout=5).read())
        assert json.loads(body)["in_flight"] == 8
        helper.agent.let_go.set()
        assert all(name.startswith("handler") for name in await asyncio.gather(*blocked))


async def test_the_deadline_is_the_methods_own_default_unless_the_caller_names_one() -> None:
    async with running(Helper) as helper:
        assert 30 < await helper.peer.told_deadline() <= 60
        assert 5 < await helper.call("told_deadline", timeout=20) <= 20
        assert 0 < await helper.peer.told_deadline_in_thread() <= 5
        assert helper.agent.deadline is None


async def test_a_call_made_in_a_handler_ends_with_the_handlers_own_deadline() -> None:
    async with running(Other) as other, running(Helper, peers={"Other": other.endpoint}) as helper:
        assert await helper.call("ask_back", {"target": "Other", "timeout": 60}, timeout=20) < 20
        with pytest.raises(AgentUnknown, match="no agent called 'Nobody'") as caught:
            await helper.call("ask_back", {"target": "Nobody"})
        assert not caught.value.retry_safe, "the handler ran"


async def test_a_background_task_of_a_handler_is_not_bound_by_the_handlers_deadline() -> None:
    async with running(Other) as other, running(Helper, peers={"Other": other.endpoint}) as helper:
        assert await helper.call("in_background", timeout=1) == "accepted"
        await eventually(lambda: helper.agent.seen)
        assert helper.agent.seen == [(None, 3)]


async def test_a_call_that_takes_too_long_ends_and_its_handler_is_cancelled() -> None:
    async with running(Helper) as helper:
        with pytest.raises(DeadlineExceeded):
            await helper.call("wait", timeout=0.05)
        await eventually(lambda: "in_flight 0.0" in _metric(helper, "agent_requests_in_flight"))


def _metric(helper: Any, name: str) -> str:
    text = helper.agent._wiring.introspection.metrics().decode()
    return " ".join(line.replace('{agent="Helper"}', "")[len(name) - 9 :] for line in text.splitlines() if name in line)


async def test_a_caller_that_is_cancelled_cancels_the_handler() -> None:
    async with running(Helper) as helper:
        call = asyncio.create_task(helper.peer.wait())
        await eventually(lambda: helper.agent._wiring.introspection.report().in_flight == 1)  # type: ignore[union-attr]
        call.cancel()
        await eventually(lambda: helper.agent._wiring.introspection.report().in_flight == 0)  # type: ignore[union-attr]


async def test_an_answer_above_the_limit_is_too_large_and_the_channel_lives() -> None:
    async with running(Helper) as helper:
        with pytest.raises(TooLarge, match="the answer of large"):
            await helper.call("large", {"size": 17 * 2**20})
        with pytest.raises(TooLarge, match="the request for echo"):
            await helper.call("echo", {"x": "x" * (17 * 2**20)})
        assert len(await helper.call("large", {"size": 15 * 2**20})) == 15 * 2**20


async def test_blocking_calls_work_from_plain_handlers_and_own_threads_but_not_on_the_loop() -> None:
    async with running(Other) as other, running(Helper, peers={"Other": other.endpoint}) as helper:
        assert await helper.peer.ask_blocking(target="Other") == 7
        assert await asyncio.to_thread(helper.agent.blocking.call, "Other", "echo", {"x": 8}) == 8
        with pytest.raises(HandlerError, match="would block everything"):
            await helper.peer.block_the_loop()
        with pytest.raises(BlockingOnLoop):
            helper.agent.blocking.call("Other", "echo", {"x": 8})
        with pytest.raises(AgentUnknown):
            await asyncio.to_thread(helper.agent.blocking.call, "Nobody", "echo", {"x": 8})


async def test_self_call_works_from_another_threads_loop() -> None:
    async with running(Other) as other, running(Helper, peers={"Other": other.endpoint}) as helper:

        def elsewhere() -> Any:
            return asyncio.run(helper.agent.call("Other", "echo", {"x": 9}))

        assert await asyncio.to_thread(elsewhere) == 9


async def test_a_call_to_an_agent_that_has_gone_is_unreachable() -> None:
    async with running(Other) as other:
        pass
    async with running(Helper, peers={"Other": other.endpoint}) as helper:
        with pytest.raises(Unreachable, match="nobody listens"):
            await helper.agent.call("Other", "echo", {"x": 1}, attempts=1)


async def test_calls_that_are_open_when_their_agent_stops_end_and_new_ones_are_refused() -> None:
    async with running(Other) as other:
        async with running(Helper, peers={"Other": other.endpoint}, grace_s=0.2) as helper:
            await helper.agent.call("Other", "echo", {"x": 1})
            call = asyncio.create_task(outcome(helper.agent.call("Other", "wait")))
            await eventually(lambda: other.agent._wiring.introspection.report().in_flight == 1)  # type: ignore[union-attr]
        assert type(await call) is PeerLost
        with pytest.raises(CallCancelled, match="closed"):
            await helper.agent.call("Other", "echo", {"x": 1})


async def test_describe_tells_the_methods_with_schemas() -> None:
    async with running(Helper) as helper:
        told = await helper.call("agentkit.describe")
        assert (told["name"], told["doc"]) == ("Helper", "Helps.")
        assert told["methods"]["echo"]["arguments"]["properties"]["x"]["type"] == "integer"
        assert "agentkit.describe" not in told["methods"]


class Narrow(Helper):
    serve_policy = ServePolicy(running=1, threads=1, queue=5)


async def test_describe_and_health_wait_for_nobody() -> None:
    async with running(Narrow, grace_s=0.2) as narrow:
        calls = [asyncio.create_task(outcome(narrow.peer.wait())) for _ in range(20)]
        await eventually(lambda: sum(call.done() for call in calls) == 14)
        assert {type(call.result()) for call in calls if call.done()} == {Overloaded}
        assert (await narrow.call("agentkit.describe"))["name"] == "Narrow"
        text = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"{narrow.health_url}/metrics", timeout=5).read().decode()
        )
        assert 'agent_requests_waiting{agent="Narrow"} 5.0' in text
        assert 'agent_queue_wait_seconds_count{agent="Narrow"} 0.0' in text
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_requests_are_counted_by_declared_methods_only() -> None:
    async with running(Helper) as helper:
        await helper.peer.echo(x=1)
        await outcome(helper.peer.fail())
        for n in range(20):
            await outcome(helper.call(f"invented_{n}"))
        text = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"{helper.health_url}/metrics", timeout=5).read().decode()
        )
        assert 'agent_requests_total{agent="Helper",method="echo",outcome="ok"} 1.0' in text
        assert 'agent_requests_total{agent="Helper",method="fail",outcome="handler_error"} 1.0' in text
        assert "invented" not in text


# -- plain callers, over a real REQ socket ----------------------------------------------------------------------------


class Legacy(Helper):
    @rpc
    async def Shout(self, text: str, times: int = 1) -> dict[str, Any]:
        return {"text": text.upper() * times}

    async def handle_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"status": "ok", "got": request}


class PlainCaller:
    def __init__(self, raw_caller: Any) -> None:
        self._raw = raw_caller

    async def __call__(self, message: Any) -> Any:
        self._raw.send(message if isinstance(message, bytes) else json.dumps(message).encode())
        return json.loads((await self._raw.frames())[0])


async def test_plain_requests_of_every_shape_are_served(caplog: pytest.LogCaptureFixture) -> None:
    async with running(Legacy) as legacy:
        with raw(legacy.endpoint, zmq.REQ) as raw_caller:
            ask = PlainCaller(raw_caller)
            assert await ask({"action": "echo", "x": 4}) == {"status": "success", "result": 4}
            assert await ask({"type": "SHOUT", "text": "a"}) == {"status": "success", "text": "A"}
            assert (await ask({"command": "Shout", "params": {"text": "b", "times": 2}}))["text"] == "BB"
            assert await ask({"action": "echo", "x": 1, "request_id": "r", "timestamp": 1, "_t": 2}) == {
                "status": "success", "result": 1, "request_id": "r",
            }  # fmt: skip
            for _ in range(3):
                assert (await ask({"action": "echo", "x": 1, "more": 2, "source_agent": "Old"}))["result"] == 1
            error = await ask({"action": "find", "id": 3, "request_id": 8})
            assert (error["status"], error["code"], error["message"], error["request_id"]) == (
                "error", "not_found", "no 3", 8,
            )  # fmt: skip
            assert (await ask({"action": "echo"}))["code"] == "bad_request"
    dropped = [r for r in caplog.records if "plain.arguments_dropped" in r.getMessage()]
    assert len(dropped) == 1, "one warning for each caller and method"


async def test_plain_verbs_that_no_handler_has_go_to_handle_request() -> None:
    async with running(Legacy) as legacy, running(Helper) as modern:
        with raw(legacy.endpoint, zmq.REQ) as raw_caller:
            assert await PlainCaller(raw_caller)({"action": "old_verb", "n": 1}) == {
                "status": "ok", "got": {"action": "old_verb", "n": 1},
            }  # fmt: skip
        with raw(modern.endpoint, zmq.REQ) as raw_caller:
            assert (await PlainCaller(raw_caller)({"action": "old_verb"}))["code"] == "unknown_method"


async def test_handle_request_may_be_a_plain_def_and_its_failures_are_answers() -> None:
    class Old(BaseAgent):
        def handle_request(self, request: dict[str, Any]) -> dict[str, Any]:
            assert threading.current_thread() is not threading.main_thread()
            return {"seven": 7 // request["by"]}

    async with running(Old) as old:
        with raw(old.endpoint, zmq.REQ) as raw_caller:
            ask = PlainCaller(raw_caller)
            assert await ask({"action": "divide", "by": 7, "request_id": 1}) == {
                "status": "success", "seven": 1, "request_id": 1,
            }  # fmt: skip
            failed = await ask({"action": "divide", "by": 0, "request_id": 2})
            assert (failed["status"], failed["code"], failed["request_id"]) == ("error", "handler_error", 2)
            assert "ZeroDivisionError" in failed["error"]
            assert (await ask({"action": "ping"}))["health"] == "ok"  # not handle_request's


async def test_handle_request_that_takes_no_request_is_refused_at_the_start() -> None:
    class Wrong(BaseAgent):
        async def handle_request(self) -> dict[str, Any]:
            return {}

    with pytest.raises(ConfigError, match="handle_request"):
        async with running(Wrong):
            pass


async def test_a_native_call_does_not_reach_handle_request() -> None:
    async with running(Legacy) as legacy:
        with pytest.raises(UnknownMethod):
            await legacy.call("handle_request", {"request": {}})


@pytest.mark.parametrize("verb", ["health_check", "health", "ping", "detailed_health", "PING"])
async def test_plain_health_verbs_always_work(verb: str) -> None:
    async with running(Helper) as helper:
        with raw(helper.endpoint, zmq.REQ) as raw_caller:
            ask = PlainCaller(raw_caller)
            for message in ({"action": verb, "request_id": 1}, verb.encode()):
                answer = await ask(message)
                assert (answer["status"], answer["health"], answer["healthy"]) == ("success", "ok", True)
                assert answer["name"] == "Helper"


async def test_a_plain_caller_gets_the_methods_default_deadline() -> None:
    class Slow(BaseAgent):
        @rpc(timeout="50ms")
        async def slow(self) -> None:
            await asyncio.sleep(10)

    async with running(Slow) as slow:
        with raw(slow.endpoint, zmq.REQ) as raw_caller:
            began = time.monotonic()
            assert (await PlainCaller(raw_caller)({"action": "slow"}))["code"] == "deadline_exceeded"
            assert time.monotonic() - began < 5


async def test_a_handlers_context_is_its_own() -> None:
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="clean")

    class Marker(BaseAgent):
        @rpc
        async def mark(self, word: str) -> str:
            before = mark.get()
            mark.set(word)
            return before

    async with running(Marker) as marker:
        assert [await marker.peer.mark(word=w) for w in "ab"] == ["clean", "clean"]
