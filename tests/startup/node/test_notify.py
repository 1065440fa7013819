from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentkit.transport.notify import Notifier
from startup.node.listeners import open_listener
from startup.node.notify import MAX_BYTES, MAX_FIELDS, Notification, NotifyServer, parse
from tests.measured import unmeasured
from tests.startup.node.conftest import PATIENCE_S


class Heard:
    def __init__(self, folder: Path) -> None:
        self.queue: asyncio.Queue[Notification] = asyncio.Queue()
        self.server = NotifyServer(folder / "notify.sock", self.queue.put_nowait)

    async def next(self) -> Notification:
        async with asyncio.timeout(PATIENCE_S):
            return await self.queue.get()

    def notifier(self) -> Notifier:
        return Notifier(str(self.server.path))


@pytest.fixture
async def heard(run_folder: Path) -> AsyncIterator[Heard]:
    heard = Heard(run_folder)
    yield heard
    heard.server.close()
    assert not heard.server.path.exists()


async def test_message_comes_with_the_pid_that_the_kernel_knows(heard: Heard) -> None:
    code = (
        "import os, sys; from agentkit.transport.notify import Notifier;"
        " Notifier(sys.argv[1]).send({'READY': 1, 'MAINPID': 1, 'STATUS': 'all=well'}); print(os.getpid())"
    )
    sender = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(heard.server.path)], capture_output=True, check=True
    )
    told = await heard.next()
    assert told.pid == int(sender.stdout)
    assert told.fields == {"READY": "1", "MAINPID": "1", "STATUS": "all=well"}


@pytest.mark.process
async def test_500_ready_messages_at_once_are_all_received(heard: Heard) -> None:
    """From 50 processes that wait for each other; the socket's queue holds ten."""
    code = (
        "import os, sys, threading; from agentkit.transport.notify import Notifier\n"
        "sys.stdin.read()\n"
        "def send(n):\n"
        "    notifier = Notifier(sys.argv[1])\n"
        "    assert notifier.send({'READY': 1, 'N': n}); notifier.close()\n"
        "threads = [threading.Thread(target=send, args=(n,)) for n in range(10)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    zygote = [sys.executable, "-c", FORKS, str(heard.server.path), code]
    sender = subprocess.Popen(zygote, stdin=subprocess.PIPE, env=unmeasured(os.environ))
    assert sender.stdin is not None
    sender.stdin.close()
    told = [await heard.next() for _ in range(500)]
    assert {(one.pid, one.fields["N"]) for one in told} == {(one.pid, str(n)) for one in told for n in range(10)}
    assert len({one.pid for one in told}) == 50
    assert await asyncio.to_thread(sender.wait) == 0
    assert heard.server.dropped == 0


FORKS = """
import os, sys
import agentkit.transport.notify
pids = []
for _ in range(50):
    pid = os.fork()
    if not pid:
        exec(sys.argv[2])
        os._exit(0)
    pids.append(pid)
sys.exit(max(os.waitpid(pid, 0)[1] for pid in pids))
"""


async def test_descriptors_come_with_fdstore_only(heard: Heard) -> None:
    notifier = heard.notifier()
    with open_listener("127.0.0.1", 0) as listener:
        before = len(os.listdir("/proc/self/fd"))
        notifier.send_now({"READY": 1}, fds=(listener.fileno(),))
        assert (await heard.next()).fds == ()
        assert len(os.listdir("/proc/self/fd")) == before
        notifier.send_now({"FDSTORE": 1, "FDNAME": "inbox"}, fds=(listener.fileno(),))
        told = await heard.next()
        with socket.socket(fileno=told.fds[0]) as received:
            assert received.getsockname() == listener.getsockname()
            assert not received.get_inheritable()
    notifier.close()


async def test_messages_of_hostile_size_are_dropped_counted_and_leak_nothing(heard: Heard) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hostile, open_listener("127.0.0.1", 0) as listener:
        hostile.connect(str(heard.server.path))
        hostile.send(b"READY=1\n" + b"X=" + b"y" * MAX_BYTES)
        socket.send_fds(hostile, [b"FDSTORE=1"], [listener.fileno()] * 250)
        hostile.send(b"")
        hostile.send(b"\xff\xfe=\x00\n=\n\n\xff" * 500)
        hostile.send(b"READY=1")
        assert (await heard.next()).fields == {}
        assert (await heard.next()).fields == {}
        assert (await heard.next()).fields == {"READY": "1"}
    assert heard.server.dropped == 2
    assert len(os.listdir("/proc/self/fd")) == before


async def test_handler_that_raises_loses_no_other_message(run_folder: Path) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    def odd(told: Notification) -> None:
        if told.fields["N"] == "0":
            raise ValueError("odd")
        heard.put_nowait(told.fields["N"])

    server = NotifyServer(run_folder / "n", odd)
    notifier = Notifier(str(server.path))
    sender = threading.Thread(target=lambda: [notifier.send({"N": n}) for n in range(3)])
    sender.start()
    assert [await heard.get(), await heard.get()] == ["1", "2"]
    await asyncio.to_thread(sender.join)
    notifier.close()
    server.close()


def test_fields_are_bounded_and_lines_without_a_name_left_out() -> None:
    assert parse(b"A=1\nno name\n=x\nB=a=b\n") == {"A": "1", "B": "a=b"}
    assert len(parse(b"\n".join(b"F%d=1" % n for n in range(1000)))) == MAX_FIELDS


async def test_watchdog_messages_that_come_while_others_gather_are_heard_too_and_what_follows_them(
    heard: Heard,
) -> None:
    notifier = heard.notifier()
    for _ in range(3):  # each after the pause that the one before began
        assert notifier.send({"WATCHDOG": 1})
        assert (await heard.next()).fields == {"WATCHDOG": "1"}
    assert notifier.send({"WATCHDOG": 1})
    assert notifier.send({"READY": 1})
    assert [(await heard.next()).fields for _ in range(2)] == [{"WATCHDOG": "1"}, {"READY": "1"}]
    notifier.close()


async def test_a_server_that_closes_while_messages_gather_is_closed(run_folder: Path) -> None:
    heard = Heard(run_folder)
    notifier = heard.notifier()
    assert notifier.send({"WATCHDOG": 1})
    await heard.next()
    heard.server.close()
    assert not notifier.send({"WATCHDOG": 1})
    notifier.close()
