"""The life of an agent as its author sees it: order of hooks, checks, timers, what raises where."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentkit import AgentConfig, BaseAgent, ConfigError, NotRunning, StartupError, every, health_check, rpc
from agentkit.agent.hibernation.timer_throttle import TimerThrottle
from agentkit.clock import now_s
from agentkit.health.checks import CheckPolicy
from agentkit.settings import SecretSource
from agentkit.testing import running
from tests.agentkit.support import PATIENCE_S, eventually, outcome


class Diary(BaseAgent):
    """Writes down its life."""

    class Config(AgentConfig):
        words: int = 3

    def __init__(self) -> None:  # without super().__init__()
        self.lines = [f"init {self.name} {self.config.words}"]

    async def on_start(self) -> None:
        self.lines.append(f"start running={self.running} port={self.port > 0} dir={self.data_dir.is_dir()}")

    @health_check
    async def check(self) -> None:
        self.lines.append("check")

    async def run(self) -> None:
        self.lines.append(f"run running={self.running}")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.lines.append("run cancelled")
            raise

    @every("10ms")
    async def tick(self) -> None:
        if self.lines[-1] != "tick":
            self.lines.append("tick")

    async def on_stop(self) -> None:
        self.lines.append(f"stop running={self.running}")

    @rpc
    async def answer(self) -> int:
        self.lines.append("call")
        return 42


async def test_hooks_run_in_the_promised_order() -> None:
    async with running(Diary, config={"words": 5}) as diary:
        await eventually(lambda: "tick" in diary.agent.lines)
        assert await diary.peer.answer() == 42
    assert [line for line in diary.agent.lines if line not in ("tick", "call")] == [
        "init Diary 5",
        "start running=False port=True dir=True",
        "check",
        "run running=True",
        "run cancelled",
        "stop running=False",
    ]
    assert diary.agent.lines.index("tick") > diary.agent.lines.index("run running=True")


async def test_attributes_are_those_that_are_promised(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    async with running(
        Diary, name="Other", data_dir=tmp_path, secrets={"TOKEN": SecretSource(file=str(tmp_path / "token"))}
    ) as diary:
        agent = diary.agent
        assert (agent.name, agent.machine, agent.instance) == ("Other", "test", "Other")
        assert agent.secrets == {"TOKEN": "s3cret"}
        assert agent.data_dir == tmp_path
        assert agent.port != agent.health_port
        assert time.time() - 60 < agent.start_time <= time.time()
        assert repr(agent) == "<Diary test/Other>"
        assert "s3cret" not in repr(agent) + repr(agent._wiring.settings)  # type: ignore[union-attr]


def test_an_agent_that_does_not_run_says_so() -> None:
    agent = BaseAgent.__new__(Diary)
    with pytest.raises(NotRunning, match="Diary is not running"):
        _ = agent.port
    assert agent.running is False


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"words": "many"}, r"config.words: got 'many', want Input should be a valid integer"),
        ({"wrds": 1}, r"config.wrds: got 1, want Extra inputs are not permitted"),
    ],
)
async def test_a_config_that_does_not_fit_is_refused_before_anything_starts(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        async with running(Diary, config=config):
            pass


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Diary.Config().words = 4


class Failing(BaseAgent):
    stopped = False

    async def on_start(self) -> None:
        raise ValueError("no database")

    async def on_stop(self) -> None:
        type(self).stopped = True


async def test_on_start_that_raises_fails_the_start_with_its_cause_and_on_stop_runs() -> None:
    with pytest.raises(StartupError, match="on_start raised ValueError: no database") as caught:
        async with running(Failing):
            pass
    assert isinstance(caught.value.__cause__, ValueError)
    assert Failing.stopped


async def test_on_start_that_exits_fails_the_start_too() -> None:
    class Exits(BaseAgent):
        async def on_start(self) -> None:
            raise SystemExit("no licence")

    with pytest.raises(StartupError, match="SystemExit: no licence"):
        async with running(Exits):
            pass


async def test_on_stop_that_raises_hangs_or_exits_does_not_keep_it_from_stopping() -> None:
    class Raises(BaseAgent):
        async def on_stop(self) -> None:
            raise ValueError("stuck")

    class Exits(BaseAgent):
        async def on_stop(self) -> None:
            raise SystemExit(3)

    let_go = asyncio.Event()

    class Hangs(BaseAgent):
        async def on_stop(self) -> None:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

    for cls in (Raises, Exits, Hangs):
        async with asyncio.timeout(PATIENCE_S), running(cls, grace_s=0.2):
            pass
    let_go.set()


async def test_on_stop_runs_when_no_handler_does_not_even_one_that_was_given_up() -> None:
    events: list[str] = []
    began = asyncio.Event()

    class Slow(BaseAgent):
        @rpc
        async def work(self) -> None:
            began.set()
            try:
                await asyncio.sleep(30)
            finally:
                await asyncio.sleep(0.1)
                events.append("handler cleaned up")

        async def on_stop(self) -> None:
            events.append("on_stop")

    async with running(Slow) as slow:
        call = asyncio.create_task(outcome(slow.call("work", timeout=30)))
        await began.wait()
        call.cancel()
        await asyncio.wait((call,))
    assert events == ["handler cleaned up", "on_stop"]


async def test_run_may_return_and_the_agent_serves_on() -> None:
    class Done(BaseAgent):
        async def run(self) -> None:
            self.ran = True

        @rpc
        async def answer(self) -> bool:
            return self.ran

    async with running(Done) as done:
        await asyncio.sleep(0.01)
        assert await done.peer.answer() is True
        assert done.agent.running


@pytest.mark.parametrize("failure", [ValueError("broke"), SystemExit("broke")])
async def test_run_that_raises_fails_the_agent(failure: BaseException) -> None:
    class Breaks(BaseAgent):
        async def run(self) -> None:
            raise failure

    async with running(Breaks) as breaks:
        runtime: Any = breaks.agent._wiring
        assert await runtime.until_stopped() == f"run raised {type(failure).__name__}: broke"


async def test_run_that_ignores_cancellation_does_not_keep_it_from_stopping() -> None:
    class Stubborn(BaseAgent):
        let_go = False

        async def run(self) -> None:
            while not self.let_go:
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    continue

    async with asyncio.timeout(PATIENCE_S), running(Stubborn, grace_s=0.3) as stubborn:
        pass
    stubborn.agent.let_go = True


# -- @every -----------------------------------------------------------------------------------------------------------


async def test_every_never_overlaps_itself_and_survives_raising() -> None:
    class Ticks(BaseAgent):
        def __init__(self) -> None:
            self.inside = self.most = self.runs = 0
            self.thread_runs: list[str] = []

        @every("5ms")
        async def slow(self) -> None:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.runs += 1
            try:
                await asyncio.sleep(0.02)
                raise ValueError("each time")
            finally:
                self.inside -= 1

        @every("5ms")
        def on_a_thread(self) -> None:
            self.thread_runs.append(threading.current_thread().name)

    async with running(Ticks) as ticks:
        await eventually(lambda: ticks.agent.runs >= 4 and len(ticks.agent.thread_runs) >= 4)
        assert ticks.agent.most == 1
        assert threading.main_thread().name not in ticks.agent.thread_runs
    runs = ticks.agent.runs
    await asyncio.sleep(0.03)
    assert ticks.agent.runs == runs


async def test_every_is_late_rather_than_in_a_burst() -> None:
    class Late(BaseAgent):
        def __init__(self) -> None:
            self.at: list[float] = []

        @every("20ms")
        async def tick(self) -> None:
            self.at.append(now_s())
            if len(self.at) == 1:
                await asyncio.sleep(0.2)

    async with running(Late) as late:
        await eventually(lambda: len(late.agent.at) >= 5)
        at = late.agent.at
        # after the late one the next comes at a multiple again, not at once for each that was missed
        assert sum(later - earlier < 0.01 for earlier, later in itertools.pairwise(at)) <= 1, at


def multiple(at_s: float, period_s: float) -> int:
    """The last multiple of `period_s`; the loop may call up to 2 ms before one."""
    return int((at_s + 0.002) / period_s)


async def test_a_multiple_of_the_clock_is_slept_for_once() -> None:
    period_s, pace = 0.02, TimerThrottle()
    multiples = []
    for _ in range(40):
        await pace.until_aligned(period_s)
        multiples.append(multiple(now_s(), period_s))
    # Called twice for each, it would be 20. One that is late by almost a whole period counts for the next.
    assert len(set(multiples)) > 35


# -- health checks ----------------------------------------------------------------------------------------------------

FAST = CheckPolicy(interval_s=0.03, timeout_s=0.5, retries=3)


class Checked(BaseAgent):
    problem = ""

    @health_check
    async def model_loaded(self) -> None:
        if self.problem:
            raise RuntimeError(self.problem)

    @health_check
    def disk(self) -> None:
        """On a thread."""


async def test_a_check_that_fails_gates_the_start() -> None:
    class Never(Checked):
        problem = "no model"

    with pytest.raises(StartupError, match="not healthy: check model_loaded failed: RuntimeError: no model"):
        async with running(Never, checks=FAST):
            pass


async def test_one_failure_degrades_several_in_a_row_fail_and_a_pass_heals() -> None:
    async with running(Checked, checks=FAST) as checked:
        runtime: Any = checked.agent._wiring
        seen: list[str] = []
        board = runtime._checks.board
        told = runtime._teller
        told.health = lambda verdict: seen.append(verdict.health.value)
        checked.agent.problem = "model gone"
        await eventually(lambda: board.verdict.health.value == "failing")
        assert seen == ["degraded", "degraded", "failing"] or seen == ["degraded", "failing"] or seen[-1] == "failing"
        assert seen[0] == "degraded"
        assert "RuntimeError: model gone" in board.verdict.reason
        checked.agent.problem = ""
        await eventually(lambda: board.verdict.health.value == "ok")


async def test_a_check_that_hangs_on_a_thread_takes_one_thread_not_one_a_round() -> None:
    let_go = threading.Event()

    class Hangs(BaseAgent):
        started = 0
        armed = False

        @health_check
        def hangs(self) -> None:
            if self.armed:
                type(self).started += 1
                let_go.wait(20)

    try:
        async with running(Hangs, checks=CheckPolicy(interval_s=0.3, timeout_s=0.25, retries=3)) as hangs:
            hangs.agent.armed = True
            board: Any = hangs.agent._wiring._checks.board  # type: ignore[union-attr]
            await eventually(lambda: board.verdict.health.value == "failing")
            await asyncio.sleep(0.35)
            assert Hangs.started == 1
            assert "still runs" in board.verdict.reason
            hangs.agent.armed = False
            let_go.set()
            await eventually(lambda: board.verdict.health.value == "ok")
    finally:
        let_go.set()


async def test_an_async_check_that_hangs_is_ended_at_its_limit() -> None:
    class Hangs(BaseAgent):
        @health_check(timeout="30ms")
        async def hangs(self) -> None:
            await asyncio.sleep(30)

    with pytest.raises(StartupError, match=r"hangs failed: no result within 0\.03 s"):
        async with running(Hangs):
            pass


async def test_report_error_is_thread_safe_and_tells_the_one_who_started_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(Checked) as checked:
        told: list[tuple[str, str]] = []
        checked.agent._wiring.report_error = lambda severity, message: told.append((severity, message))  # type: ignore[union-attr,method-assign]
        threads = [
            threading.Thread(target=checked.agent.report_error, args=("critical", f"disk {n}"), kwargs={"free": n})
            for n in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(told) == [("critical", f"disk {n}") for n in range(10)]
        assert sum("disk" in r.getMessage() for r in caplog.records) == 10
    BaseAgent.report_error(checked.agent, "info", "after the end")
