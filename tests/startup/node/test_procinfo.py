from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from startup.node import procinfo


def test_own_process_is_described() -> None:
    found = procinfo.stat(os.getpid())
    assert found is not None
    assert (found.pid, found.ppid, found.session) == (os.getpid(), os.getppid(), os.getsid(0))
    assert found.is_alive
    assert found in list(procinfo.all_stats()) or procinfo.stat(os.getpid()) != found  # its state may have changed
    pss = procinfo.pss_bytes(os.getpid())
    assert pss is not None
    assert 1_000_000 < pss < 2_000_000_000


@pytest.mark.process
def test_start_time_environment_and_command_of_a_process() -> None:
    before_s = time.time()
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "print(1, flush=True); input()"],
        env={"A": "b=c"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        started_s = procinfo.started_s(sleeper.pid)
        assert started_s is not None
        assert before_s - 0.05 <= started_s <= time.time() + 0.05
        assert procinfo.environ(sleeper.pid)["A"] == "b=c"
        assert procinfo.command(sleeper.pid).startswith(f"{sys.executable} -c print")
        sleeper.kill()


def test_what_is_gone_is_none_or_empty() -> None:
    absent = 2**22 + 1
    assert procinfo.stat(absent) is procinfo.pss_bytes(absent) is procinfo.started_s(absent) is None
    assert (procinfo.environ(absent), procinfo.command(absent)) == ({}, "")


def test_holder_of_a_port_is_found_and_a_free_port_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert [holder.pid for holder in procinfo.port_holders(port)] == [os.getpid()]
    assert procinfo.port_holders(port) == []
    if socket.has_ipv6:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
            assert [holder.pid for holder in procinfo.port_holders(listener.getsockname()[1])] == [os.getpid()]
