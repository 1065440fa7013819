"""One run for many requests: idempotency keys and cached methods."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from agentkit import BadRequest, BaseAgent, CallCancelled, DeadlineExceeded, HandlerError, Overloaded, ServePolicy, rpc
from agentkit.testing import running
from tests.agentkit.support import eventually, outcome


class Bank(BaseAgent):
    """Books, and counts how often."""

    def __init__(self) -> None:
        self.booked: list[int] = []
        self.asked: list[Any] = []
        self.let_go = asyncio.Event()
        self.cancelled = 0

    @rpc
    async def book(self, amount: int) -> dict[str, int]:
        self.booked.append(amount)
        return {"total": sum(self.booked)}

    @rpc
    async def fail(self, amount: int) -> None:
        self.booked.append(amount)
        raise ValueError("no such account")

    @rpc
    async def slow(self, amount: int) -> int:
        self.booked.append(amount)
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return len(self.booked)

    @rpc
    def in_thread(self, amount: int) -> int:
        self.booked.append(amount)
        return len(self.booked)

    @rpc(cache="10m")
    async def rate(self, currency: str, day: int = 0) -> dict[str, Any]:
        self.asked.append(currency)
        if currency == "slow":
            await self.let_go.wait()
        if currency == "none":
            raise ValueError("no such currency")
        return {"currency": currency, "n": len(self.asked)}

    @rpc(cache="50ms")
    async def soon_old(self) -> int:
        self.asked.append("soon_old")
        return len(self.asked)


class Forgetful(Bank):
    serve_policy = ServePolicy(cache_entries=2, idempotency_entries=2)


# -- idempotency keys -------------------------------------------------------------------------------------------------


async def test_a_repeated_key_gets_the_first_answer_and_the_handler_does_not_run_twice() -> None:
    async with running(Bank) as bank:
        answers = [await bank.call("book", {"amount": 5}, idempotency_key="k1") for _ in range(3)]
        assert answers == [{"total": 5}] * 3
        assert await bank.call("book", {"amount": 5}, idempotency_key="k2") == {"total": 10}
        assert await bank.call("book", {"amount": 5}) == {"total": 15}
        assert [await bank.call("in_thread", {"amount": 1}, idempotency_key="k1") for _ in range(2)] == [4, 4]
        assert bank.agent.booked == [5, 5, 5, 1]


async def test_a_handlers_error_is_an_answer_too() -> None:
    async with running(Bank) as bank:
        for _ in range(3):
            with pytest.raises(HandlerError, match="no such account"):
                await bank.call("fail", {"amount": 5}, idempotency_key="k")
        assert bank.agent.booked == [5]


async def test_a_key_that_comes_again_with_other_arguments_is_refused() -> None:
    async with running(Bank) as bank:
        await bank.call("book", {"amount": 5}, idempotency_key="k")
        with pytest.raises(BadRequest, match="'k' came with other arguments"):
            await bank.call("book", {"amount": 6}, idempotency_key="k")
        for wrong in ("x" * 201, 7):
            with pytest.raises(BadRequest, match="text of at most 200"):
                await bank.call("book", {"amount": 6}, idempotency_key=wrong)  # type: ignore[arg-type]
        assert bank.agent.booked == [5]


async def test_who_repeats_a_key_meanwhile_waits_for_the_run() -> None:
    async with running(Bank) as bank:
        calls = [asyncio.create_task(bank.call("slow", {"amount": 1}, idempotency_key="k")) for _ in range(50)]
        await eventually(lambda: bank.agent._wiring.introspection.report().in_flight == 50)  # type: ignore[union-attr]
        assert (
            type(await outcome(bank.call("slow", {"amount": 1}, idempotency_key="k", timeout=0.05))) is DeadlineExceeded
        )
        calls[7].cancel()
        bank.agent.let_go.set()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == [1] * 49
        assert bank.agent.booked == [1]


async def test_a_run_with_a_key_is_not_cancelled_by_its_callers_going() -> None:
    async with running(Bank) as bank:
        call = asyncio.create_task(bank.call("slow", {"amount": 1}, idempotency_key="k", timeout=30))
        await eventually(lambda: bank.agent.booked)
        call.cancel()
        again = asyncio.create_task(bank.call("slow", {"amount": 1}, idempotency_key="k", timeout=30))
        await eventually(lambda: bank.agent._wiring.introspection.report().in_flight == 2)  # type: ignore[union-attr]
        bank.agent.let_go.set()
        assert await again == 1
        assert (bank.agent.booked, bank.agent.cancelled) == ([1], 0)


async def test_a_run_that_its_deadline_ended_is_not_begun_again() -> None:
    async with running(Bank) as bank:
        assert (
            type(await outcome(bank.call("slow", {"amount": 1}, idempotency_key="k", timeout=0.05))) is DeadlineExceeded
        )
        await eventually(lambda: bank.agent.cancelled == 1)
        end = await outcome(bank.call("slow", {"amount": 1}, idempotency_key="k"))
        assert (type(end), end.retry_safe) == (DeadlineExceeded, False)
        assert bank.agent.booked == [1]


async def test_keys_are_forgotten_when_there_are_too_many() -> None:
    async with running(Forgetful) as bank:
        for key in "abca":
            await bank.call("book", {"amount": 1}, idempotency_key=key)
        assert len(bank.agent.booked) == 4


# -- caches -----------------------------------------------------------------------------------------------------------


async def test_the_same_question_is_answered_once_within_its_time() -> None:
    async with running(Bank) as bank:
        first = await bank.call("rate", {"currency": "chf"})
        first["n"] = "mine now"
        assert [await bank.call("rate", {"currency": "chf"}) for _ in range(5)] == [{"currency": "chf", "n": 1}] * 5
        assert (await bank.call("rate", {"day": 3, "currency": "chf"}))["n"] == 2
        assert (await bank.call("rate", {"currency": "chf", "day": 3}))["n"] == 2
        assert bank.agent.asked == ["chf", "chf"]


async def test_an_answer_grows_old() -> None:
    async with running(Bank) as bank:
        assert await bank.call("soon_old") == 1
        await asyncio.sleep(0.06)
        assert await bank.call("soon_old") == 2


async def test_many_who_ask_at_once_get_one_run() -> None:
    async with running(Bank) as bank:
        calls = [asyncio.create_task(bank.call("rate", {"currency": "slow"})) for _ in range(100)]
        await eventually(lambda: bank.agent._wiring.introspection.report().in_flight == 100)  # type: ignore[union-attr]
        bank.agent.let_go.set()
        assert {answer["n"] for answer in await asyncio.gather(*calls)} == {1}


async def test_errors_are_shared_and_not_kept() -> None:
    async with running(Bank) as bank:
        for n in range(1, 3):
            ends = await asyncio.gather(*(outcome(bank.call("rate", {"currency": "none"})) for _ in range(10)))
            assert {type(end) for end in ends} == {HandlerError}
            assert n <= len(bank.agent.asked) < n * 10


async def test_when_the_one_who_runs_is_cancelled_the_next_runs_in_its_stead() -> None:
    async with running(Bank) as bank:
        first = asyncio.create_task(bank.call("rate", {"currency": "slow"}))
        await eventually(lambda: bank.agent.asked == ["slow"])
        others = [asyncio.create_task(bank.call("rate", {"currency": "slow"})) for _ in range(5)]
        await eventually(lambda: bank.agent._wiring.introspection.report().in_flight == 6)  # type: ignore[union-attr]
        first.cancel()
        await eventually(lambda: bank.agent.asked == ["slow", "slow"])
        bank.agent.let_go.set()
        assert {answer["n"] for answer in await asyncio.gather(*others)} == {2}


async def test_a_cache_is_bounded() -> None:
    async with running(Forgetful) as bank:
        for currency in ("a", "b", "c", "a"):
            await bank.call("rate", {"currency": currency})
        assert bank.agent.asked == ["a", "b", "c", "a"]


async def test_any_order_of_calls_cancellations_and_deadlines_leaves_nothing_behind() -> None:
    rng = random.Random(11)

    class Tight(Bank):
        serve_policy = ServePolicy(running=2, queue=3)

    async with running(Tight) as bank:

        async def one(n: int) -> Any:
            method, arguments = rng.choice((("slow", {"amount": 1}), ("rate", {"currency": "slow"})))
            key = rng.choice(("a", "b")) if method == "slow" else None
            call = asyncio.create_task(
                bank.call(method, arguments, idempotency_key=key, timeout=rng.uniform(0.01, 0.3), attempts=1)
            )
            if rng.random() < 0.3:
                await asyncio.sleep(rng.uniform(0, 0.05))
                call.cancel()
            return (await asyncio.gather(outcome(call), return_exceptions=True))[0]

        ends = await asyncio.gather(*(one(n) for n in range(200)))
        bank.agent.let_go.set()
        await eventually(lambda: bank.agent._wiring.introspection.report().in_flight == 0)  # type: ignore[union-attr]
        allowed = {int, dict, DeadlineExceeded, Overloaded, CallCancelled, asyncio.CancelledError}
        assert {type(end) for end in ends} <= allowed
        assert bank.agent._wiring._dispatcher.sharing._runs == {}  # type: ignore[union-attr]
        assert len(bank.agent.booked) <= 2, "each key ran once at most"
