"""Agents that fail in every way: one fleet of them all, brought up once. Their failures are told, and the rest comes up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentkit.errors import CallError
from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch, is_alive, kill, until
from tests.startup.cli.launched import Result

pytestmark = [pytest.mark.process, pytest.mark.slow]

AGENTS = '''
    from __future__ import annotations
    import asyncio, os, pathlib, signal, sys, threading, time
    from agentkit import AgentConfig, BaseAgent, health_check, rpc

    class Well(BaseAgent):
        @rpc
        async def pid(self) -> int:
            return os.getpid()

    class Raises(BaseAgent):
        async def on_start(self) -> None:
            raise FileNotFoundError("model.bin is not there")

    class Hangs(BaseAgent):
        """Waits for what never comes, as a connect without a time limit does."""
        async def on_start(self) -> None:
            await self.never()
        async def never(self) -> None:
            await asyncio.Event().wait()

    class HangsLoop(BaseAgent):
        """The same, and blocks its loop."""
        async def on_start(self) -> None:
            time.sleep(600)

    class ExitsAtOnce(BaseAgent):
        def __init__(self) -> None:
            os._exit(7)

    class LeavesQuietly(BaseAgent):
        async def on_start(self) -> None:
            os._exit(0)

    class Unhealthy(BaseAgent):
        @health_check
        async def disk(self) -> None:
            raise OSError("the disk is full")

    class IgnoresTerm(BaseAgent):
        async def on_start(self) -> None:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    class Parent(BaseAgent):
        """Leaves a grandchild in a session of its own, whose parent is gone."""
        async def on_start(self) -> None:
            if not os.fork():
                os.setsid()
                if not os.fork():
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    pathlib.Path("grandchild").write_text(str(os.getpid()))
                    os.execvp("sleep", ["sleep", "600"])
                os._exit(0)
            while not os.path.exists("grandchild"):
                await asyncio.sleep(0.01)

    class Threads(BaseAgent):
        """Starts a thread that never ends."""
        async def on_start(self) -> None:
            threading.Thread(target=time.sleep, args=(600,)).start()

    class Blocks(BaseAgent):
        @rpc
        async def wait_for_the_database(self) -> None:
            time.sleep(600)
        @rpc
        async def pid(self) -> int:
            return os.getpid()
'''

BROKEN = {
    "Raises": {},
    "Hangs": {"start": {"timeout": "1s"}},
    "HangsLoop": {"start": {"timeout": "1s"}},
    "ExitsAtOnce": {},
    "LeavesQuietly": {},
    "Unhealthy": {},
}
NO_RETRY = {"max_attempts": 0, "retry_failed_after": "0s"}


class Outcome:
    """The fleet, and how its `up` ended."""

    def __init__(self, fleet: Scratch, result: Result) -> None:
        self.fleet, self.result = fleet, result
        self.document: dict[str, Any] = result.json
        self.failed = {found["agent"]: found for found in self.document["failed"]}

    def tail(self, name: str) -> str:
        return "\n".join(self.failed[name]["log_tail"])


@pytest.fixture(scope="module")
def broken() -> Iterator[Outcome]:
    """Each of BROKEN, somebody who needs one of them, somebody who needs that one, and somebody who needs nobody."""
    with Scratch() as fleet:
        fleet.python("faulty.py", AGENTS)
        agents: dict[str, dict[str, Any]] = {
            name: {"agent": f"faulty:{name}", "restart": NO_RETRY, **keys} for name, keys in BROKEN.items()
        }
        agents["Needs"] = {"agent": "faulty:Well", "dependencies": ["Raises"]}
        agents["NeedsNeeds"] = {"agent": "faulty:Well", "dependencies": ["Needs", "Well"]}
        agents["Likes"] = {"agent": "faulty:Well", "dependencies": [{"name": "Raises", "required": False}]}
        agents["Well"] = {"agent": "faulty:Well"}
        fleet.write(agents)
        yield Outcome(fleet, fleet.run("up", "fleet.yaml", "--json"))


@pytest.fixture(scope="module")
def willing() -> Iterator[Scratch]:
    """Agents that come up, and misbehave afterwards."""
    with Scratch() as fleet:
        fleet.python("faulty.py", AGENTS)
        names = ["Well", "IgnoresTerm", "Parent", "Threads", "Blocks"]
        agents: dict[str, dict[str, Any]] = {name: {"agent": f"faulty:{name}"} for name in names}
        agents["Blocks"]["watchdog"] = "1s"
        agents["IgnoresTerm"]["shutdown"] = {"grace": "500ms"}
        fleet.write(agents)
        fleet.up()
        yield fleet


# -- that can't start


def test_on_start_that_raises_fails_the_agent_with_its_traceback_in_the_log(broken: Outcome) -> None:
    assert broken.failed["Raises"]["reason"] == "on_start raised FileNotFoundError: model.bin is not there"
    assert "Traceback" in broken.tail("Raises")
    assert "faulty.py" in broken.tail("Raises")


def test_on_start_that_hangs_is_ended_at_its_limit(broken: Outcome) -> None:
    assert "not ready within 1 s" in broken.failed["Hangs"]["reason"]
    row = broken.fleet.rows()["Hangs"]
    assert (row.phase, row.pid) == (Phase.FAILED, None)
    assert row.last_exit.startswith("start timeout")


def test_on_start_that_blocks_the_loop_is_ended_with_the_line_where_it_hung(broken: Outcome) -> None:
    assert "not ready within 1 s" in broken.failed["HangsLoop"]["reason"]
    log = broken.fleet.log("HangsLoop")
    assert "faulty.py" in log
    assert "in on_start" in log


def test_an_agent_that_exits_at_once_fails_with_its_exit_code(broken: Outcome) -> None:
    assert "exit 7" in broken.failed["ExitsAtOnce"]["reason"]
    assert "exit 0, unasked" in broken.failed["LeavesQuietly"]["reason"]
    assert "kind: task" in broken.failed["LeavesQuietly"]["reason"]


def test_an_agent_whose_check_never_passed_fails_with_the_checks_words(broken: Outcome) -> None:
    assert "disk" in broken.failed["Unhealthy"]["reason"]
    assert "the disk is full" in broken.failed["Unhealthy"]["reason"]


def test_what_requires_a_failed_agent_is_skipped_with_the_cause_and_the_rest_is_up(broken: Outcome) -> None:
    assert broken.result.code == 1
    skipped = {found["agent"]: found["because"] for found in broken.document["skipped"]}
    assert set(skipped) == {"Needs", "NeedsNeeds"}
    assert all("Raises" in because for because in skipped.values())
    up = {agent["instance"] for agent in broken.document["agents"] if agent["phase"] == "ready"}
    assert up == {"Well", "Likes"}
    assert broken.document["ready"] == 2
    assert broken.fleet.call("Well", "pid") == broken.fleet.pids()["Well"]


def test_status_says_why_each_failed(broken: Outcome) -> None:
    text = broken.fleet.run("status").out
    assert "model.bin is not there" in text
    one = broken.fleet.run("status", "Raises").out
    assert "failed" in one
    assert "model.bin is not there" in one
    assert "FileNotFoundError" in one


# -- that do not want to end


def test_an_agent_that_ignores_sigterm_is_killed_when_its_grace_is_over(willing: Scratch) -> None:
    pid = willing.pids()["IgnoresTerm"]
    began_s = time.monotonic()
    assert willing.run("stop", "IgnoresTerm").code == 0
    assert time.monotonic() - began_s > 0.5
    assert pid
    assert not is_alive(pid)
    row = willing.rows()["IgnoresTerm"]
    assert (row.phase, row.last_exit.startswith("signal SIGKILL")) == (Phase.STOPPED, True)


def test_grandchildren_in_a_session_of_their_own_are_gone_when_their_agent_has_stopped(willing: Scratch) -> None:
    grandchild = int((willing.folder / "grandchild").read_text())
    assert is_alive(grandchild)
    assert willing.run("stop", "Parent").code == 0
    assert not is_alive(grandchild)


def test_grandchildren_of_an_agent_that_was_killed_are_gone_before_its_next_life(willing: Scratch) -> None:
    (willing.folder / "grandchild").unlink(missing_ok=True)
    assert willing.run("start", "Parent").code == 0
    before = willing.rows()["Parent"]
    grandchild = int((willing.folder / "grandchild").read_text())
    (willing.folder / "grandchild").unlink()
    kill(before.pid)
    willing.wait_restarted("Parent", before)
    assert not is_alive(grandchild)
    assert is_alive(int((willing.folder / "grandchild").read_text()))


def test_a_thread_that_never_ends_does_not_keep_a_stopped_agent_alive(willing: Scratch) -> None:
    pid = willing.pids()["Threads"]
    assert pid
    began_s = time.monotonic()
    assert willing.run("stop", "Threads").code == 0
    assert not is_alive(pid)
    assert time.monotonic() - began_s < PATIENCE_S
    assert willing.rows()["Threads"].last_exit.startswith("exit 0")


# -- that get stuck


def test_a_blocked_loop_is_restarted_by_the_watchdog_and_its_stack_is_in_the_log(willing: Scratch) -> None:
    before = willing.rows()["Blocks"]
    with pytest.raises(CallError):
        willing.call("Blocks", "wait_for_the_database", timeout=PATIENCE_S)
    after = willing.wait_restarted("Blocks", before)
    assert after.last_exit.startswith("watchdog (signal SIGABRT)")
    assert "stuck for 1 s" in after.last_error
    assert after.restarts == 1
    assert "in wait_for_the_database" in willing.log("Blocks")
    assert willing.call("Blocks", "pid") == after.pid


def test_a_stopped_process_is_found_by_the_watchdog_too(willing: Scratch) -> None:
    """SIGSTOP: neither its loop nor its signal handlers run."""
    willing.run("restart", "Blocks")
    before = willing.rows()["Blocks"]
    assert before.pid
    os.kill(before.pid, signal.SIGSTOP)
    after = willing.wait_restarted("Blocks", before)
    assert after.last_exit.startswith("watchdog (signal SIGKILL)")
    until(lambda: not is_alive(before.pid or 0))
