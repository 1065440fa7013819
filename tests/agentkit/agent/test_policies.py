"""An agent under a fleet file's policies: its real inbox, its real metrics."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import pytest

from agentkit import BaseAgent, CallPolicy, ConfigError, DeadlineExceeded, Overloaded, ServePolicy, rpc
from agentkit.agent.builtin import DESCRIBE
from agentkit.agent.handlers import traits_of
from agentkit.agent.policies import methods_under
from agentkit.testing import Running, running
from startup.cli.describe import description_lines
from tests.agentkit.support import eventually, outcome


class Clerk(BaseAgent):
    """Keeps people waiting."""

    call_policy = CallPolicy(attempts=2)
    serve_policy = ServePolicy(threads=3)

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.runs = 0

    @rpc(timeout="30s", concurrency=4)
    async def wait(self) -> int:
        self.runs += 1
        await self.open.wait()
        return self.runs

    @rpc(cache="1m")
    async def number(self, of: str) -> int:
        self.runs += 1
        return self.runs

    @rpc
    async def release(self) -> None:
        self.open.set()


def told(method: str, **said: Any) -> dict[str, Any]:
    return {"methods": {method: said}}


def metrics(clerk: Running[Clerk]) -> dict[str, float]:
    with urllib.request.urlopen(f"{clerk.health_url}/metrics") as answer:
        lines = [line for line in answer.read().decode().splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_a_limit_of_the_file_goes_before_that_of_the_method() -> None:
    async with running(Clerk, policy=told("wait", concurrency=1, queue=0, queue_wait_s=0.0)) as clerk:
        first = asyncio.create_task(clerk.call("wait"))
        await eventually(lambda: clerk.agent.runs == 1)
        with pytest.raises(Overloaded, match="1 run at wait"):
            await clerk.call("wait", attempts=1)
        await clerk.call("release")
        assert await first
    assert Clerk.methods["wait"].options.concurrency == 4, "the class is left as it was written"


async def test_a_deadline_of_the_file_goes_before_that_of_the_method_and_one_calls_own_before_both() -> None:
    async with running(Clerk, policy=told("wait", timeout_s=0.1)) as clerk:
        assert isinstance(await outcome(clerk.call("wait")), DeadlineExceeded)
        call = asyncio.create_task(clerk.call("wait", timeout=60))
        await clerk.call("release")
        assert await call == 2


async def test_a_cache_may_be_turned_off() -> None:
    async with running(Clerk, policy=told("number", cache_s=0.0)) as clerk:
        assert [await clerk.call("number", {"of": "x"}) for _ in range(2)] == [1, 2]


async def test_limits_of_the_whole_agent_are_the_files_then_the_classs() -> None:
    async with running(Clerk, policy={"serve": {"running": 5, "queue": 6}}) as clerk:
        found = await asyncio.to_thread(metrics, clerk)
    limits = {gate: found[f'agent_admission_limit{{agent="Clerk",gate="{gate}"}}'] for gate in ("handlers", "threads", "wait")}  # fmt: skip
    assert limits == {"handlers": 5, "threads": 3, "wait": 4}
    assert found['agent_admission_room{agent="Clerk",gate="wait"}'] == 6
    assert found['agent_admission_waiting{agent="Clerk",gate="wait"}'] == 0
    assert found['agent_admission_running{agent="Clerk",gate="wait"}'] == 0


async def test_what_counts_is_described_wherever_it_was_said() -> None:
    said = {
        "serve": {"running": 5},
        "calls": {"breaker_failures": 9},
        "to": {"Store": {"attempts": 1}},
        **told("wait", queue=2),
    }
    async with running(Clerk, policy=said) as clerk:
        found = await clerk.call(DESCRIBE)
    assert (found["serve"]["running"], found["serve"]["threads"], found["serve"]["queue"]) == (5, 3, 1024)
    assert (found["calls"]["attempts"], found["calls"]["breaker_failures"]) == (2, 9)
    assert found["calls"]["to"] == {"Store": {"attempts": 1}}
    assert (found["methods"]["wait"]["concurrency"], found["methods"]["wait"]["queue"]) == (4, 2)
    lines = list(description_lines(found))
    assert "    timeout 30 s, concurrency 4, queue 2" in lines
    assert "  calls Store: attempts 1" in lines
    assert any(line.startswith("  serves: running 5, threads 3, queue 1024, queue wait 0.05 s") for line in lines)


async def test_a_method_that_is_not_there_fails_the_agent_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"serve\.methods\.wit.*release, wait"):
        async with running(Clerk, policy=told("wit", concurrency=1)):
            pass


class Asker(BaseAgent):
    @rpc
    async def ask(self, method: str) -> str:
        try:
            await self.call("Clerk", method)
        except DeadlineExceeded:
            return "too late"
        return "answered"


async def test_a_caller_may_have_deadlines_of_its_own_for_a_peer_and_its_method() -> None:
    async with running(Clerk) as clerk, running(
        Asker, peers={"Clerk": clerk.endpoint}, policy={"to": {"Clerk.wait": {"timeout_s": 0.1}}}
    ) as asker:  # fmt: skip
        assert await asker.call("ask", {"method": "wait"}) == "too late"
        assert await asker.call("ask", {"method": "release"}) == "answered"
        found = await asyncio.to_thread(metrics, asker)
        assert found['agent_calls_failed_total{agent="Asker",code="deadline_exceeded"}'] == 1
        assert found['agent_call_retry_budget{agent="Asker",peer="Clerk"}'] == 10


def test_callers_are_told_what_the_file_says_of_a_method() -> None:
    changed = methods_under(Clerk.methods, {"number": {"balance": "hash", "key": "of"}})
    assert traits_of(changed) == {"number": {"balance": "hash", "key": "of"}}
