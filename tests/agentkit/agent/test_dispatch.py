"""From request to answer: turns, limits, cancellation at every moment, and that each request is answered once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from agentkit.agent.decorators import rpc
from agentkit.agent.dispatch import Dispatcher
from agentkit.agent.handlers import methods_of
from agentkit.errors import CallError, Draining, NotFound, Overloaded
from agentkit.resilience.policy import USUAL_SERVICE, ServePolicy
from agentkit.transport.peer import Inbound, Peer
from agentkit.wire import values
from agentkit.wire.envelope import Limits
from tests.agentkit.support import eventually


class Owner:
    """Handlers that wait until they are let go."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.cancelled: list[int] = []
        self.let_go = asyncio.Event()
        self.thread_let_go = threading.Event()
        self.inside = 0
        self.most_inside = 0

    @rpc
    async def wait(self, n: int) -> int:
        self.began.append(n)
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.append(n)
            raise
        return n

    @rpc
    async def echo(self, n: int) -> int:
        self.began.append(n)
        return n

    @rpc(concurrency=1)
    async def one(self, n: int) -> int:
        self.began.append(n)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await asyncio.sleep(0.001)
        finally:
            self.inside -= 1
        return n

    @rpc(concurrency=2, queue_wait="30ms")
    async def brief(self, n: int) -> int:
        return await self.wait(n)

    @rpc(concurrency=2, queue_wait="0s")
    async def never(self, n: int) -> int:
        return await self.wait(n)

    @rpc(concurrency=1, queue=1)
    async def short_line(self, n: int) -> int:
        return await self.wait(n)

    @rpc(priority="high")
    async def urgent(self, n: int) -> int:
        self.began.append(n)
        return n

    @rpc(priority="high")
    def urgent_thread(self, n: int) -> int:
        self.began.append(n)
        return n

    @rpc
    def thread(self, n: int) -> int:
        self.began.append(n)
        self.thread_let_go.wait(20)
        return n

    @rpc(concurrency=1)
    def one_thread(self, n: int) -> int:
        self.began.append(n)
        self.thread_let_go.wait(20)
        return n

    @rpc
    def stop_iteration(self) -> int:
        return next(iter([]))

    @rpc
    async def exits(self) -> None:
        raise SystemExit("bye")

    @rpc
    def thread_exits(self) -> None:
        raise SystemExit("bye")

    @rpc
    async def claims_draining(self) -> None:
        raise Draining("not run, honestly")

    @rpc
    async def speechless(self) -> None:
        class Speechless(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        raise Speechless

    @rpc
    async def unsendable(self) -> object:
        return object()

    @rpc
    async def wrong(self) -> int:
        return "x"  # type: ignore[return-value]

    @rpc
    async def stubborn(self) -> str:
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
        return "after all"

    @rpc
    async def unresolved(self, x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


class Bench:
    """A dispatcher without sockets: what is asked, and what was answered."""

    def __init__(self, **policy: Any) -> None:
        self.owner = Owner()
        self.waits: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self.answers: dict[int, Any] = {}
        self.dispatcher = Dispatcher(self.owner, methods_of(Owner), self, policy=ServePolicy(**policy))
        self.dispatcher.answers = self
        self._peer = Peer(b"x", "tester", "test/tester", Limits())
        self._id = 0

    def answer(self, inbound: Inbound, value: object) -> None:
        values.pack(value)
        self._ended(inbound, value)

    def refuse(self, inbound: Inbound, error: CallError) -> None:
        if not inbound.is_answered:
            self._ended(inbound, error)

    def _ended(self, inbound: Inbound, end: object) -> None:
        assert inbound.id not in self.answers, "answered twice"
        inbound.is_answered = True
        self.answers[inbound.id] = end

    def finished(self, _method: str, _seconds: float, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def ask(self, method: str, *, budget_ms: int = 10_000, **arguments: Any) -> Inbound:
        self._id += 1
        inbound = Inbound(self._peer, self._id, method, budget_ms, {}, values.pack(arguments), [])
        self.dispatcher.request(inbound)
        return inbound

    def abandon(self, inbound: Inbound) -> None:
        inbound.is_answered = True
        self.dispatcher.abandon(inbound)

    async def end_of(self, inbound: Inbound) -> Any:
        await eventually(lambda: inbound.id in self.answers)
        return self.answers[inbound.id]

    def gates(self) -> dict[str, tuple[int, int]]:
        """What is inside and what waits, of every gate: all zero when nothing runs."""
        found = {gate.name: gate for gates in self.dispatcher._admission.gates.values() for gate in gates}
        return {name: (gate.inside, len(gate.line)) for name, gate in found.items()}

    async def assert_empty(self) -> None:
        await eventually(lambda: set(self.gates().values()) == {(0, 0)})
        assert self.dispatcher.in_flight == 0


Make = Callable[..., Bench]


@pytest.fixture
async def bench() -> Any:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.owner.let_go.set()
        one.owner.thread_let_go.set()
        await one.assert_empty()
        one.dispatcher.close()


async def test_a_request_is_answered(bench: Make) -> None:
    b = bench()
    assert await b.end_of(b.ask("echo", n=4)) == 4
    assert b.outcomes == {"ok": 1}
    assert b.dispatcher.last_progress_s is not None


async def test_calls_cancelled_before_their_first_step_give_their_places_back(bench: Make) -> None:
    b = bench(running=4)
    for n in range(20):
        b.abandon(b.ask("wait", n=n))
    assert b.owner.began == []
    await b.assert_empty()
    assert await b.end_of(b.ask("echo", n=1)) == 1


async def test_a_call_cancelled_while_it_runs_stops(bench: Make) -> None:
    b = bench()
    inbound = b.ask("wait", n=1)
    await eventually(lambda: b.owner.began == [1])
    b.abandon(inbound)
    b.abandon(inbound)
    await eventually(lambda: b.owner.cancelled == [1])
    assert inbound.id not in b.answers
    assert b.outcomes == {"cancelled": 1}


async def test_a_call_cancelled_while_it_waits_makes_room_in_the_line(bench: Make) -> None:
    b = bench(running=1, queue=2)
    b.ask("wait", n=0)
    waiting = [b.ask("wait", n=n) for n in (1, 2)]
    assert type(await b.end_of(b.ask("wait", n=3))) is Overloaded
    b.abandon(waiting[0])
    again = b.ask("wait", n=4)
    assert again.id not in b.answers
    b.owner.let_go.set()
    assert await b.end_of(again) == 4
    assert b.owner.began == [0, 2, 4]


async def test_a_full_line_is_overloaded_and_says_when_to_come_again(bench: Make) -> None:
    b = bench(running=1, queue=0)
    b.ask("wait", n=0)
    error = await b.end_of(b.ask("echo", n=1))
    assert (type(error), error.retry_safe, error.retry_after_ms) == (Overloaded, True, 100)


async def test_calls_beyond_the_limit_wait_their_turn_in_order(bench: Make) -> None:
    b = bench(running=2)
    for n in range(5):
        b.ask("wait", n=n)
    await eventually(lambda: b.owner.began == [0, 1])
    b.owner.let_go.set()
    await eventually(lambda: len(b.answers) == 5)
    assert b.owner.began == [0, 1, 2, 3, 4]


async def test_concurrency_1_serialises(bench: Make) -> None:
    b = bench()
    for n in range(30):
        b.ask("one", n=n)
    await eventually(lambda: len(b.answers) == 30)
    assert b.owner.most_inside == 1
    assert b.owner.began == list(range(30))


async def test_a_serialised_method_does_not_keep_a_free_place_from_others(bench: Make) -> None:
    b = bench(running=2)
    b.ask("wait", n=0)
    b.ask("wait", n=1)
    for n in (10, 11, 12):
        b.ask("one", n=n)
    for n in (20, 21):
        b.ask("echo", n=n)
    assert b.gates()["handlers"] == (2, 5)
    b.owner.let_go.set()
    await eventually(lambda: len(b.answers) == 7)
    assert b.owner.most_inside == 1


async def test_who_waits_longer_than_the_method_allows_is_overloaded_and_did_not_run(bench: Make) -> None:
    b = bench()
    for n in (0, 1):
        b.ask("brief", n=n)
    waiting = [b.ask("brief", n=n) for n in (2, 3)]
    ends = [await b.end_of(one) for one in waiting]
    assert {(type(end), end.retry_safe) for end in ends} == {(Overloaded, True)}
    assert "2 run at brief, no turn within" in ends[0].message
    assert (b.owner.began, b.dispatcher.waiting) == ([0, 1], 0)
    b.owner.let_go.set()
    assert await b.end_of(b.ask("brief", n=4)) == 4


async def test_a_process_that_stood_still_refuses_nobody_for_it(bench: Make) -> None:
    b = bench(running=1, queue_wait_s=0.03)
    assert await b.end_of(b.ask("echo", n=0)) == 0
    b.dispatcher.gates["handlers"].usual_s = 0.001  # how long such a handler takes is known
    asked = [b.ask("echo", n=n) for n in range(1, 9)]
    time.sleep(0.5)  # the process gets no CPU
    assert [await b.end_of(one) for one in asked] == list(range(1, 9))


async def test_who_gets_a_turn_in_time_runs_and_its_wait_is_counted(bench: Make) -> None:
    b = bench()
    for n in (0, 1):
        b.ask("brief", n=n)
    waiting = b.ask("brief", n=2)
    assert b.dispatcher.waiting == 1
    b.owner.let_go.set()
    assert await b.end_of(waiting) == 2
    assert len(b.waits) == 1
    await asyncio.sleep(0.06)
    assert b.outcomes == {"ok": 3}, "nothing was refused afterwards"


async def test_a_method_may_let_nobody_wait_or_only_some(bench: Make) -> None:
    b = bench()
    for n in (0, 1):
        b.ask("never", n=n)
    assert type(await b.end_of(b.ask("never", n=2))) is Overloaded
    b.ask("short_line", n=3)
    waiting = b.ask("short_line", n=4)
    assert type(await b.end_of(b.ask("short_line", n=5))) is Overloaded
    b.owner.let_go.set()
    assert await b.end_of(waiting) == 4


async def test_who_serialises_lets_others_wait_until_their_deadline(bench: Make) -> None:
    b = bench(queue_wait_s=0.01)
    b.ask("short_line", n=0)
    waiting = b.ask("short_line", n=1)
    await asyncio.sleep(0.08)
    assert waiting.id not in b.answers
    b.owner.let_go.set()
    assert await b.end_of(waiting) == 1


async def test_the_urgent_run_though_every_place_is_taken(bench: Make) -> None:
    b = bench(running=4, threads=4)
    for n in range(8):
        b.ask("wait", n=n)
        b.ask("thread", n=100 + n)
    await eventually(lambda: len(b.owner.began) == 8)
    assert await b.end_of(b.ask("urgent", n=50)) == 50
    assert await b.end_of(b.ask("urgent_thread", n=51)) == 51


async def test_a_budget_that_is_gone_is_dropped_before_it_starts(bench: Make) -> None:
    b = bench()
    error = await b.end_of(b.ask("echo", n=1, budget_ms=0))
    assert (error.code, error.retry_safe) == ("deadline_exceeded", True)
    assert b.owner.began == []


async def test_a_deadline_that_passes_in_the_line_drops_the_call_unrun(bench: Make) -> None:
    b = bench(running=1)
    b.ask("wait", n=0)
    error = await b.end_of(b.ask("wait", n=1, budget_ms=30))
    assert (error.code, error.retry_safe) == ("deadline_exceeded", True)
    assert b.owner.began == [0]


async def test_a_deadline_that_passes_while_it_runs_cancels_the_handler(bench: Make) -> None:
    b = bench()
    error = await b.end_of(b.ask("wait", n=1, budget_ms=500))
    assert (error.code, error.retry_safe) == ("deadline_exceeded", False)
    assert b.owner.cancelled == [1]
    assert b.outcomes == {"deadline_exceeded": 1}


async def test_a_stuck_thread_keeps_its_place_is_counted_and_its_caller_is_told(bench: Make) -> None:
    b = bench()
    error = await b.end_of(b.ask("one_thread", n=1, budget_ms=500))
    assert error.code == "deadline_exceeded"
    assert b.dispatcher.threads_stuck == 1
    follower = b.ask("one_thread", n=2)
    await asyncio.sleep(0.05)
    assert b.owner.began == [1], "it still serialises"
    b.owner.thread_let_go.set()
    assert await b.end_of(follower) == 2
    assert b.dispatcher.threads_stuck == 0


async def test_behind_threads_that_are_all_stuck_nothing_runs_after_its_deadline(bench: Make) -> None:
    b = bench()
    for n in range(USUAL_SERVICE.threads):
        b.ask("thread", n=n, budget_ms=1000)
    await eventually(lambda: b.dispatcher.threads_stuck == USUAL_SERVICE.threads)
    error = await b.end_of(b.ask("thread", n=99, budget_ms=30))
    assert (error.code, error.retry_safe) == ("deadline_exceeded", True)
    assert b.dispatcher.threads_stuck == USUAL_SERVICE.threads
    assert await b.end_of(b.ask("echo", n=1)) == 1, "handlers on the loop go on"
    b.owner.thread_let_go.set()
    await b.assert_empty()
    assert 99 not in b.owner.began


@pytest.mark.parametrize(
    ("method", "code", "type_"),
    [
        ("stop_iteration", "handler_error", "RuntimeError"),
        ("exits", "handler_error", "SystemExit"),
        ("thread_exits", "handler_error", "SystemExit"),
        ("speechless", "handler_error", "Owner.speechless.<locals>.Speechless"),
        ("unsendable", "handler_error", "Unsendable"),
        ("wrong", "handler_error", "WrongResult"),
    ],
)
async def test_whatever_a_handler_does_its_caller_is_told_and_the_agent_serves_on(
    bench: Make, method: str, code: str, type_: str
) -> None:
    b = bench()
    error = await b.end_of(b.ask(method))
    assert (error.code, error.details["type"]) == (code, type_)
    assert await b.end_of(b.ask("echo", n=1)) == 1


async def test_a_handlers_own_error_never_claims_that_nothing_ran(bench: Make) -> None:
    b = bench()
    error = await b.end_of(b.ask("claims_draining"))
    assert (error.code, error.retry_safe) == ("draining", False)


async def test_an_annotation_that_can_t_be_resolved_answers_instead_of_hanging(bench: Make) -> None:
    b = bench()
    error = await b.end_of(b.ask("unresolved", x=1))
    assert (error.code, "Nowhere" in error.message) == ("internal", True)


@pytest.mark.parametrize(("method", "code"), [("nosuch", "unknown_method"), ("echo", "bad_request")])
async def test_refusals_before_dispatch(bench: Make, method: str, code: str) -> None:
    b = bench()
    error = await b.end_of(b.ask(method, wrong=1))
    assert error.code == code
    if code == "unknown_method":
        assert "echo" in error.details["methods"]


async def test_an_undecodable_body_is_a_bad_request(bench: Make) -> None:
    b = bench()
    inbound = Inbound(b._peer, 50, "echo", 1000, {}, b"\xc1", [])
    b.dispatcher.request(inbound)
    assert (await b.end_of(inbound)).code == "bad_request"


async def test_cancelling_all_tells_every_caller(bench: Make) -> None:
    b = bench(running=2)
    asked = [b.ask("wait", n=n) for n in range(4)]
    await eventually(lambda: len(b.owner.began) == 2)
    b.dispatcher.cancel_all("the agent stops")
    assert {(await b.end_of(inbound)).code for inbound in asked} == {"cancelled"}


async def test_idle_waits_for_handlers_whose_callers_have_gone(bench: Make) -> None:
    b = bench()
    inbound = b.ask("stubborn")
    await asyncio.sleep(0.01)
    b.abandon(inbound)
    began = time.monotonic()
    assert await b.dispatcher.idle(5)
    assert time.monotonic() - began >= 0.04
    b.ask("wait", n=1)
    assert not await b.dispatcher.idle(0.02)


async def test_a_method_may_raise_not_found_as_itself(bench: Make) -> None:
    class Shelf:
        @rpc
        async def take(self, id: int) -> None:
            raise NotFound(f"no thing {id}", details={"id": id})

    b = bench()
    dispatcher = Dispatcher(Shelf(), methods_of(Shelf), b)
    dispatcher.answers = b
    inbound = Inbound(b._peer, 9, "take", 1000, {}, values.pack({"id": 3}), [])
    dispatcher.request(inbound)
    error = await b.end_of(inbound)
    assert (type(error), error.details) == (NotFound, {"id": 3})
    dispatcher.close()


async def test_any_order_of_requests_cancellations_and_deadlines_leaves_nothing_behind(bench: Make) -> None:
    rng = random.Random(3)
    b = bench(running=3)
    asked: list[Inbound] = []
    for n in range(800):
        asked.append(b.ask(rng.choice(["wait", "echo", "one"]), n=n, budget_ms=rng.choice([1, 20, 10_000])))
        if rng.random() < 0.4:
            b.abandon(rng.choice(asked))
        if rng.random() < 0.2:
            await asyncio.sleep(0)
        if n % 100 == 99:
            b.owner.let_go.set()
            await asyncio.sleep(0.02)
            b.owner.let_go.clear()
    b.owner.let_go.set()
    await b.assert_empty()
    assert all(inbound.is_answered for inbound in asked)
    assert b.owner.most_inside == 1
