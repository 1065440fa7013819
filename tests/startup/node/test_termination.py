from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from startup.node import procinfo
from startup.node.procinfo import ProcStat
from startup.node.termination import Census, Termination
from tests.startup.node.conftest import PATIENCE_S, Hosted

#: Starts what `%s` says in a grandchild with its own session, which nobody waits for; tells both pids in a file when it runs.
DOUBLE_FORK = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        %s
        open("grandchild.new", "w").write(str(os.getpid()))
        os.rename("grandchild.new", "grandchild")
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""

HELPER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', %r], start_new_session=True%s)"


async def pid_in(path: Path) -> int:
    async with asyncio.timeout(PATIENCE_S):
        while not (path.exists() and path.read_text()):
            await asyncio.sleep(0.01)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    found = procinfo.stat(pid)
    return found is not None and found.is_alive


@pytest.mark.process
async def test_grandchildren_of_a_double_fork_with_setsid_are_gone_after_a_stop(zygote: Hosted) -> None:
    forked = await zygote.fork("m/a", zygote.script(DOUBLE_FORK % "pass"))
    bystander = await zygote.fork("m/b", zygote.script("import time; time.sleep(600)", "b.py"))
    grandchild = await pid_in(zygote.folder / "grandchild")
    assert is_alive(grandchild)
    termination = Termination(zygote.node)
    termination.terminate(forked.pid, forked.pidfd)
    assert (await zygote.exit_of("m/a")).code == -signal.SIGTERM
    assert await termination.sweep(forked.pid, 1) == []
    assert not is_alive(grandchild)
    assert is_alive(bystander.pid)


@pytest.mark.process
async def test_grandchildren_of_a_crashed_process_are_gone_too(zygote: Hosted) -> None:
    """Nobody looked at what was below it before it died: only the marks in their environment tell."""
    forked = await zygote.fork("m/a", zygote.script(DOUBLE_FORK % "pass"))
    grandchild = await pid_in(zygote.folder / "grandchild")
    signal.pidfd_send_signal(forked.pidfd, signal.SIGKILL)
    await zygote.exit_of("m/a")
    assert await Termination(zygote.node).sweep(forked.pid, 1) == []
    assert not is_alive(grandchild)


@pytest.mark.process
async def test_process_that_ignores_sigterm_is_killed_with_all_that_ignores_it_below(zygote: Hosted) -> None:
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    forked = await zygote.fork("m/a", zygote.script(ignores + DOUBLE_FORK % "pass"))
    grandchild = await pid_in(zygote.folder / "grandchild")
    termination = Termination(zygote.node)
    termination.terminate(forked.pid, forked.pidfd)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await zygote.exit_of("m/a")
    termination.kill(forked.pid, forked.pidfd)
    assert (await zygote.exit_of("m/a")).code == -signal.SIGKILL
    began_s = time.monotonic()
    assert await termination.sweep(forked.pid, 1, grace_s=0.2) == []
    assert time.monotonic() - began_s >= 0.2  # the grandchild was asked first
    assert not is_alive(grandchild)


@pytest.mark.process
async def test_executed_descendants_with_another_environment_are_found_by_what_was_seen_before_the_stop(
    zygote: Hosted,
) -> None:
    inner = (
        "import os, time; open('grandchild.new', 'w').write(str(os.getpid()));"
        " os.rename('grandchild.new', 'grandchild'); time.sleep(600)"
    )
    forked = await zygote.fork("m/a", zygote.script(HELPER % (inner, ", env={}") + "; import time; time.sleep(600)"))
    grandchild = await pid_in(zygote.folder / "grandchild")
    assert "AGENTKIT_INCARNATION" not in procinfo.environ(grandchild)
    termination = Termination(zygote.node)
    termination.terminate(forked.pid, forked.pidfd)
    await zygote.exit_of("m/a")
    assert await termination.sweep(forked.pid, 1) == []
    assert not is_alive(grandchild)


class EmptyCage:
    """Nobody is in it, whatever started in it: a process of root's can move itself elsewhere."""

    def members(self, _: int) -> list[int]:
        return []

    def is_empty(self, _: int) -> bool:
        return True

    def forbid_forks(self, _: int) -> None:
        return


@pytest.mark.process
async def test_nobody_is_looked_for_when_the_cgroup_is_empty(zygote: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    forked = await zygote.fork("m/a", zygote.script("import time; time.sleep(600)"))
    termination = Termination(zygote.node, EmptyCage())
    signal.pidfd_send_signal(forked.pidfd, signal.SIGKILL)
    await zygote.exit_of("m/a")
    monkeypatch.setattr(procinfo, "all_stats", lambda: pytest.fail("all of /proc was read"))
    assert await termination.sweep(forked.pid, 1) == []


@pytest.mark.process
async def test_who_left_the_cgroup_is_ended_when_it_was_seen_before(zygote: Hosted) -> None:
    inner = "import os, time; open('child.new', 'w').write(str(os.getpid())); os.rename('child.new', 'child'); time.sleep(600)"
    forked = await zygote.fork("m/a", zygote.script(HELPER % (inner, "") + "; import time; time.sleep(600)"))
    child = await pid_in(zygote.folder / "child")
    termination = Termination(zygote.node, EmptyCage())
    termination.terminate(forked.pid, forked.pidfd)
    await zygote.exit_of("m/a")
    assert await termination.sweep(forked.pid, 1) == []
    assert not is_alive(child)


@pytest.mark.process
async def test_stopped_and_frozen_leftovers_are_killed(zygote: Hosted) -> None:
    forked = await zygote.fork("m/a", zygote.script(DOUBLE_FORK % "pass"))
    grandchild = await pid_in(zygote.folder / "grandchild")
    os.kill(grandchild, signal.SIGSTOP)
    signal.pidfd_send_signal(forked.pidfd, signal.SIGKILL)
    await zygote.exit_of("m/a")
    assert await Termination(zygote.node).sweep(forked.pid, 1, grace_s=0.05) == []
    assert not is_alive(grandchild)


@pytest.mark.process
async def test_abort_leaves_the_stacks_of_all_threads_in_the_log(zygote: Hosted) -> None:
    text = "import time\nprint('up', flush=True)\ndef stuck_here():\n    time.sleep(600)\nstuck_here()\n"
    forked = await zygote.fork("m/a", zygote.script(text))
    async with asyncio.timeout(PATIENCE_S):
        while not zygote.log("m/a").exists() or not zygote.log("m/a").read_text():
            await asyncio.sleep(0.01)
    Termination(zygote.node).abort(forked.pid, forked.pidfd)
    assert (await zygote.exit_of("m/a")).code == -signal.SIGABRT
    assert "in stuck_here" in zygote.log("m/a").read_text()


@pytest.mark.process
async def test_process_of_an_equal_incarnation_at_another_node_is_left_alone(zygote: Hosted) -> None:
    stranger = await zygote.fork(
        "m/b",
        zygote.script("import time; time.sleep(600)"),
        env={"AGENTKIT_INCARNATION": "7", "AGENTKIT_NODE": "/other.sock"},
    )
    try:
        assert await Termination(zygote.node).sweep(2**22 + 1, 7) == []
        assert is_alive(stranger.pid)
    finally:
        signal.pidfd_send_signal(stranger.pidfd, signal.SIGKILL)
        await zygote.exit_of("m/b")


@pytest.mark.process
async def test_forks_show_their_own_marks_and_not_the_zygotes_environment(zygote: Hosted) -> None:
    forked = await zygote.fork("m/a", zygote.script("open('up', 'w').write('1'); import time; time.sleep(600)"))
    await pid_in(zygote.folder / "up")
    found = procinfo.environ(forked.pid)
    assert (found["AGENTKIT_INCARNATION"], found["AGENTKIT_NODE"]) == ("1", zygote.node)
    assert procinfo.command(forked.pid) == "agentkit: agent c/m/a"


def proc(pid: int, ppid: int, *, session: int = 1, pgrp: int = 1, start: int = 100) -> ProcStat:
    return ProcStat(pid, "S", ppid, pgrp, session, start)


def census(*stats: ProcStat, marked: dict[int, int] | None = None) -> Census:
    return Census({found.pid: found for found in stats}, marked or {})


def test_remains_are_session_group_marked_known_and_everything_below_them() -> None:
    found = census(
        proc(10, 1),  # the zygote
        proc(20, 10, session=5),
        proc(21, 10, pgrp=5),
        proc(22, 10),  # marked
        proc(23, 10),  # known
        proc(24, 22),  # below the marked one
        proc(25, 10, start=7),  # has the pid of a known one, started another time
        proc(26, 10),  # another agent
        marked={22: 3, 26: 4},
    )
    remains = found.remains(5, 3, known=[(23, 100), (25, 100), (99, 1)])
    assert [one.pid for one in remains] == [20, 21, 22, 23, 24]


def test_descendants_survive_a_cycle_of_parents() -> None:
    assert census(proc(2, 3), proc(3, 2)).descendants([2]) == {2, 3}
