"""Pools of classes, and what a machine has: who does not fit is told by how much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from startup.errors import Refused
from startup.node.fits import check_fit
from startup.plan.revision import Revision
from startup.spec.fleet import Fleet
from startup.spec.load import Loaded
from startup.spec.pool_checks import machine_problems
from startup.spec.pools import Machine, ranges
from startup.spec.problem import Problem
from tests.startup.spec.projects import agents, loaded, of, one

GIB = 2**30
HERE = Machine(frozenset({0, 1}), 4 * GIB)

THREE = """
    A: {agent: 'm:C', resources: {requests: {memory: 2Gi}}}
    B: {agent: 'm:C', resources: {limits: {memory: 1Gi}}}
    C: {agent: 'm:C'}
"""


def on_this(found: Loaded) -> list[Problem]:
    assert found.resolved is not None
    return list(machine_problems(found.resolved, HERE))


def fleet_of(found: Loaded) -> Fleet:
    assert found.fleet is not None
    return found.fleet


def test_a_pool_that_its_class_fits_into_is_not_mentioned(tmp_path: Path) -> None:
    found = loaded(tmp_path, "pools: {core: {memory: 4Gi, reserve: 1Gi}}\n" + agents(THREE))
    assert not found.errors
    (pool,) = fleet_of(found).pools
    assert (pool.klass, pool.machine, pool.memory_bytes, pool.reserve_bytes) == ("core", "local", 4 * GIB, GIB)


def test_a_reserve_is_never_given_out(tmp_path: Path) -> None:
    found = loaded(tmp_path, "pools: {core: {memory: 3Gi, reserve: 512Mi}}\n" + agents(THREE))
    problem = one(found, "pool")
    assert problem.severity == "error"
    assert problem.place.endswith("fleet.yaml:3")
    assert problem.found == "agents of class `core` on local request 3,072 MiB: A 2,048 MiB, B 1,024 MiB"
    assert problem.want == "at most 2,560 MiB (3,072 MiB, of which 512 MiB are kept back)"
    assert "raise `memory` by 512 MiB" in problem.fix


def test_replicas_count_each_and_who_is_not_enabled_does_not(tmp_path: Path) -> None:
    lines = "A: {agent: 'm:C', replicas: 3, resources: {requests: {memory: 1Gi}}}"
    assert of(loaded(tmp_path, "pools: {core: {memory: 2Gi}}\n" + agents(lines)), "pool")
    assert not of(loaded(tmp_path, "pools: {core: {memory: 3Gi}}\n" + agents(lines)), "pool")
    assert not of(loaded(tmp_path, "pools: {core: {memory: 1Gi}}\n" + agents(lines[:-1] + ", enabled: false}")), "pool")


def test_a_machine_may_have_a_pool_of_its_own(tmp_path: Path) -> None:
    machines = "machines: {small: {}, large: {pools: {core: {memory: 2Gi}}}}\npools: {core: {memory: 1Gi}}\n"
    lines = "\n".join(
        f"{name}: {{agent: 'm:C', machine: {machine}, resources: {{requests: {{memory: 1536Mi}}}}}}"
        for name, machine in (("A", "small"), ("B", "large"))
    )
    assert "on small request 1,536 MiB: A" in one(loaded(tmp_path, machines + agents(lines)), "pool").found


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ("{memory: 1Gi, reserve: 1Gi}", "a reserve below the pool's memory"),
        ("{reserve: 1Gi}", "a reserve below"),
        ("{memory: 5}", "a size"),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(tmp_path: Path, pool: str, said: str) -> None:
    found = loaded(tmp_path, f"pools: {{core: {pool}}}\n" + agents("A: {agent: 'm:C'}"))
    assert any(said in problem.want for problem in found.errors)


def test_a_request_above_the_limit_is_refused(tmp_path: Path) -> None:
    resources = "{limits: {memory: 1Gi}, requests: {memory: 2Gi}}"
    found = loaded(tmp_path, agents(f"A: {{agent: 'm:C', resources: {resources}}}"))
    assert any("requests.memory of at most limits.memory" in problem.want for problem in found.errors)


def test_a_pool_that_nobody_is_in_is_a_warning_with_the_nearest_class(tmp_path: Path) -> None:
    problem = one(loaded(tmp_path, "pools: {cores: {memory: 1Gi}}\n" + agents("A: {agent: 'm:C'}")), "pool")
    assert (problem.severity, problem.fix) == ("warning", "did you mean `core`?")


def test_requests_of_more_memory_than_there_is_are_refused_limits_are_not(tmp_path: Path) -> None:
    many = "A: {agent: 'm:C', replicas: 5, resources: {%s: {memory: 1Gi}}}"
    (problem,) = on_this(loaded(tmp_path, agents(many % "requests")))
    assert problem.place.endswith("fleet.yaml:5")
    assert problem.want == "at most 4,096 MiB, which local has"
    assert not on_this(loaded(tmp_path, agents(many % "limits")))
    (problem,) = on_this(
        loaded(tmp_path, "pools: {core: {memory: 5Gi, reserve: 1Gi}}\n" + agents(many.replace("5", "4") % "requests"))
    )
    assert "request 4,096 MiB and pools keep back 1,024 MiB" in problem.found


def test_affinity_of_a_class_holds_for_agents_that_have_none(tmp_path: Path) -> None:
    lines = "A: {agent: 'm:C'}\nB: {agent: 'm:C', resources: {cpu_affinity: [1]}}"
    found = loaded(tmp_path, "pools: {core: {cpu_affinity: [0]}}\n" + agents(lines))
    assert [spec.resources.cpu_affinity for spec in fleet_of(found).agents] == [(0,), (1,)]
    assert not on_this(found)


def test_cpus_that_the_machine_does_not_have_are_named(tmp_path: Path) -> None:
    found = loaded(tmp_path, agents("A: {agent: 'm:C', resources: {cpu_affinity: [1, 2, 70]}}"))
    (problem,) = on_this(found)
    assert problem.place.endswith("fleet.yaml:5")
    assert (problem.found, problem.want) == ("A shall run on CPU 2, 70", "CPUs that local has: 0-1")
    far = "security: none\nmachines: {far: {host: 203.0.113.5, node_port: 10001}}\n"
    assert not on_this(loaded(tmp_path, far + agents("A: {agent: 'm:C', resources: {cpu_affinity: [70]}}")))


def test_a_node_refuses_its_part_of_a_fleet_that_does_not_fit(tmp_path: Path) -> None:
    lines = "A: {agent: 'm:C', resources: {cpu_affinity: [7], requests: {memory: 9Gi}}}"
    revision = Revision(number=1, author="ops@here", time_s=0.0, fleet=fleet_of(loaded(tmp_path, agents(lines))))
    with pytest.raises(Refused) as refused:
        check_fit(revision, "local", HERE)
    assert refused.value.code == "does_not_fit"
    assert "shall run on CPU 7; want CPUs that local has: 0-1" in str(refused.value)
    assert "at most 4,096 MiB, which local has" in str(refused.value)
    check_fit(revision, "elsewhere", HERE)
    check_fit(replace(revision, down=True), "local", HERE)


@pytest.mark.parametrize(("numbers", "said"), [([0], "0"), ([3, 0, 1, 2], "0-3"), ([0, 2, 3, 9], "0,2-3,9"), ([], "")])
def test_numbers_are_shown_as_ranges(numbers: list[int], said: str) -> None:
    assert ranges(numbers) == said
