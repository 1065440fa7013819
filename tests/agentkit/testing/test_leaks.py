"""The leak check finds what it promises to find, and waits for what is going."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading

import pytest
import zmq

from agentkit.testing.leaks import LeakCheck, no_tasks_left


def test_nothing_new_is_no_leak() -> None:
    LeakCheck().assert_none(within_s=0)


@pytest.mark.process
def test_a_child_process_is_named_with_its_command() -> None:
    check = LeakCheck()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        with pytest.raises(AssertionError, match=rf"process {child.pid} \(.*input"):
            check.assert_none(within_s=0.01)
        child.kill()
    check.assert_none()


@pytest.mark.process
def test_a_child_that_is_going_is_waited_for() -> None:
    check = LeakCheck()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    check.assert_none(within_s=30)
    assert child.wait() == 0


def test_a_thread_is_named_and_one_that_ends_is_waited_for() -> None:
    check, end = LeakCheck(), threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten", daemon=True)
    thread.start()
    with pytest.raises(AssertionError, match=r"thread 'forgotten' \(daemon\)"):
        check.assert_none(within_s=0.01)
    end.set()
    check.assert_none()


def test_an_open_socket_is_found_and_a_closed_one_is_not() -> None:
    check = LeakCheck()
    with socket.socket() as sock, pytest.raises(AssertionError, match=rf"descriptor {sock.fileno()} \(socket:"):
        check.assert_none(within_s=0.01)
    check.assert_none()


def test_an_unbound_zmq_socket_is_found_and_its_context_is_not_blamed() -> None:
    check = LeakCheck()
    with zmq.Context() as context:
        forgotten = context.socket(zmq.DEALER)
        with pytest.raises(AssertionError, match=r"zmq"):
            check.assert_none(within_s=0.01)
        forgotten.close()
        check.assert_none()


async def test_a_task_is_named_and_one_that_ends_is_waited_for() -> None:
    forgotten: asyncio.Task[bool] | None = None
    with pytest.raises(AssertionError, match=r"task 'forgotten'"):
        async with no_tasks_left(within_s=0.01):
            forgotten = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    assert forgotten is not None
    forgotten.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await forgotten
    async with no_tasks_left():
        going = asyncio.create_task(asyncio.sleep(0), name="going")
    assert going.done()


async def test_tests_run_on_uvloop() -> None:
    assert type(asyncio.get_running_loop()).__module__ == "uvloop"


@pytest.mark.process
@pytest.mark.slow
def test_the_check_guards_every_test(pytestconfig: pytest.Config, tmp_path) -> None:
    inner = tmp_path / "test_inner.py"
    inner.write_text(
        "import asyncio, socket\nKEPT = []\n"
        "def test_socket(): KEPT.append(socket.socket())\n"
        "async def test_task(): KEPT.append(asyncio.create_task(asyncio.sleep(60)))\n"
        "async def test_clean(): await asyncio.to_thread(len, '')\n"
    )
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import *  # noqa: F403\nfrom tests import conftest\n"
        "_no_tasks_in_async_tests = conftest._no_tasks_in_async_tests\n"
        "conftest.GOES_WITHIN_S = 0.2\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(pytestconfig.inipath), "--rootdir",
         str(tmp_path), str(inner)],
        cwd=pytestconfig.rootpath, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "3 passed, 2 errors" in done.stdout, done.stdout
