from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import psutil
import pytest

#: A daemon: leaves its session and its parent, ignores SIGTERM, then says its pid.
DAEMON = """
import os, signal, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(60)
"""

#: Starts a child when it is told to, and says whether that ran until it was told again.
BYSTANDER = """
import subprocess, sys
input()
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
print("it ran on" if child.poll() is None else "it was ended")
child.communicate(b"\\n")
"""


def test_percentiles_are_values_that_were_measured(common: ModuleType) -> None:
    values = [float(n) for n in range(1, 101)]
    assert [common.percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert common.percentile([7.0], 99) == 7
    with pytest.raises(ValueError, match="no values"):
        common.percentile([], 50)


def test_a_table_aligns_its_columns_and_is_the_same_as_json(common: ModuleType) -> None:
    table = common.Table("Title", ("what", "us"), notes=["a note"])
    table.add("short", 1.23456)
    table.add("much longer", None)
    assert str(table).splitlines() == [
        "## Title",
        "",
        "what           us",
        "-----------  ----",
        "short        1.23",
        "much longer     -",
        "  a note",
    ]
    assert table.as_json()["rows"] == [{"what": "short", "us": 1.23456}, {"what": "much longer", "us": None}]
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        table.add("x")


def test_free_ports_lie_outside_of_what_outgoing_connections_take(common: ModuleType) -> None:
    ports = common.free_ports(50)
    assert len(set(ports)) == 50
    assert max(ports) < 32_000


@pytest.mark.process
def test_what_a_benchmark_started_is_ended_with_its_daemons_and_nothing_else_is(common: ModuleType) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        with common.Processes() as processes:
            started = processes.start(sys.executable, "-c", DAEMON, stdout=subprocess.PIPE, text=True)
            daemon = int(started.stdout.readline())
            assert psutil.pid_exists(daemon)
            processes.end(grace_s=0.2)
            assert not psutil.pid_exists(daemon)
            started.stdout.close()
        assert bystander.poll() is None
        bystander.communicate(b"\n")


@pytest.mark.process
def test_what_a_bystander_starts_meanwhile_is_spared_too(common: ModuleType) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BYSTANDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as bystander:
        assert bystander.stdin is not None
        assert bystander.stdout is not None
        with common.Processes():
            print(file=bystander.stdin, flush=True)
            child = int(bystander.stdout.readline())
        assert psutil.pid_exists(child)
        assert bystander.communicate("\n")[0] == "it ran on\n"


@pytest.mark.process
def test_memory_cpu_and_wakeups_of_a_process_can_be_read(common: ModuleType) -> None:
    me = os.getpid()
    assert 1 < common.pss_mb(me) < 10_000
    assert common.cpu_s(me) > 0
    assert common.wakeups(me) >= 0
    assert len(common.wakeups_per_second([me], 0.05)) == 1
