"""Readings of the own process, held against the kernel's other ways of telling the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from agentkit.observe import process


class HandClock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self.at_s


def test_memory_agrees_with_psutil() -> None:
    told = psutil.Process().memory_full_info()
    assert process.rss_mb() == pytest.approx(told.rss / 2**20, rel=0.2)
    assert process.pss_mb() == pytest.approx(told.pss / 2**20, rel=0.2)
    assert process.pss_mb() <= process.rss_mb() * 1.01


def test_start_agrees_with_psutil() -> None:
    assert process.started_wall_s() == pytest.approx(psutil.Process().create_time(), abs=1.5)
    assert 0 < process.uptime_s() < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_threads_and_their_switches_are_counted() -> None:
    threads, switches = process.threads(), process.switches()
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), end.wait()))
    thread.start()
    ready.wait()
    assert process.threads() == threads + 1
    assert process.switches().voluntary >= switches.voluntary
    end.set()
    thread.join()


def test_cpu_time_only_grows() -> None:
    before = process.cpu_s()
    sum(range(100_000))
    assert process.cpu_s() > before > 0


@pytest.mark.process
def test_a_fork_counts_from_its_own_beginning_and_a_hostile_name_changes_nothing() -> None:
    code = """
import os, pathlib, time
from agentkit.observe import process
until = time.monotonic() + 0.2
while time.monotonic() < until: pass
if not (pid := os.fork()):
    pathlib.Path("/proc/self/comm").write_text("a) R 1 (b")
    ok = process.uptime_s() < 0.15 and process.cpu_s() < 0.15
    os._exit(0 if ok else 1)
raise SystemExit(os.waitpid(pid, 0)[1])
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())


def test_the_sampler_reads_at_most_once_in_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([10.004, 20.0])
    monkeypatch.setattr(process, "rss_mb", lambda: next(readings))
    clock = HandClock()
    sampler = process.MemorySampler(every_s=1.0, clock=clock)
    told = [sampler.mb()]
    clock.at_s += 0.999
    told.append(sampler.mb())
    clock.at_s += 0.001
    told.append(sampler.mb())
    assert told == [10.0, 10.0, 20.0]
