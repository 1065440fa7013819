"""Who is over a limit, and how that is said."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from agentkit.names import Incarnation
from startup.plan import ending, transitions
from startup.plan import process as proc
from startup.plan.actions import Kill
from startup.plan.limits import DEFAULT_PIDS, NONE, Limits, Usage, limits_of, over, refused
from startup.plan.phase import Phase
from startup.plan.process import Leaving, Process
from startup.spec.fleet import Resources
from tests.startup.plan.builders import agent

MIB = 2**20


@pytest.mark.parametrize(
    ("limits", "usage", "said"),
    [
        ({"memory_bytes": 256 * MIB}, {"memory_bytes": 301 * MIB}, "memory limit 256 MiB, used 301 MiB"),
        ({"memory_bytes": 256 * MIB}, {"memory_bytes": 256 * MIB + 1}, "memory limit 256 MiB, used 257 MiB"),
        ({"memory_bytes": 256 * MIB}, {"memory_bytes": 256 * MIB}, ""),
        (
            {"memory_bytes": 256 * MIB},
            {"memory_bytes": 256 * MIB, "oom_kills": 1},
            "memory limit 256 MiB, used 256 MiB",
        ),
        ({"memory_bytes": 2048 * MIB}, {"memory_bytes": 3000 * MIB}, "memory limit 2,048 MiB, used 3,000 MiB"),
        ({"pids": 64}, {"pids": 65}, "pids limit 64, has 65 processes and threads"),
        ({"pids": 64}, {"pids": 64, "forks_refused": 9}, ""),
        ({}, {"memory_bytes": 2**40, "oom_kills": 3, "pids": 2**20}, ""),
    ],
)
def test_who_is_over_its_limit_is_told_limit_and_use(limits: Any, usage: Any, said: str) -> None:
    assert over(Limits(**limits), Usage(**usage)) == said


def test_refused_forks_are_reported_once() -> None:
    limits = Limits(pids=64)
    assert not refused(limits, Usage(), 0)
    assert refused(limits, Usage(forks_refused=3), 0).startswith("pids limit 64 reached")
    assert not refused(limits, Usage(forks_refused=500), 3)


def test_an_agent_with_any_limit_has_one_of_processes() -> None:
    assert limits_of(agent("A")) == NONE
    assert limits_of(agent("A", resources=Resources(memory_request_bytes=MIB))).pids is None
    assert limits_of(agent("A", resources=Resources(cpu_limit=0.5))).pids == DEFAULT_PIDS
    assert limits_of(agent("A", resources=Resources(memory_limit_bytes=MIB, pids_limit=5))).pids == 5
    assert not NONE.any


def running() -> Process:
    p = proc.new(agent("A"), 0.0)
    p, _ = transitions.unblocked(transitions.wanted(p, 0.0)[0], 0.0)
    p, _ = transitions.forked(transitions.ordered(p, Incarnation(7)), 100, Incarnation(7), 0.1)
    return transitions.ready(p, 0.2)


def test_who_is_over_its_limit_is_killed_and_started_again_with_that_reason() -> None:
    p, actions = transitions.over_limit(running(), "memory limit 1 MiB, used 2 MiB", 10.0)
    assert actions == [Kill(p.id, Incarnation(7))]
    assert (p.phase, p.leaving) == (Phase.STOPPING, Leaving.LIMIT)
    p, _ = ending.exited(ending.gone(p, 10.1), -9, 10.2, Random(1))
    assert (p.phase, p.restarts) == (Phase.WAITING, 1)
    assert p.reason == p.last_error == "memory limit 1 MiB, used 2 MiB"
    assert p.last_exit.startswith("over its limit (")


def test_a_limit_that_the_kernel_enforced_is_the_reason_of_the_exit() -> None:
    p, _ = ending.exited(running(), -9, 10.0, Random(1), over="memory limit 1 MiB, used 1 MiB")
    assert p.last_error == "memory limit 1 MiB, used 1 MiB"


def test_who_is_stopped_anyway_keeps_its_grace_period() -> None:
    stopping, _ = transitions.stop(running(), 10.0, Leaving.STOP)
    assert transitions.over_limit(stopping, "memory limit 1 MiB, used 2 MiB", 10.1) == (stopping, [])
    p, _ = ending.exited(stopping, -9, 10.2, Random(1), over="memory limit 1 MiB, used 2 MiB")
    assert p.phase is Phase.STOPPED
