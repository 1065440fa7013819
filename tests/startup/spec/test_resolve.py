from __future__ import annotations

import json
from pathlib import Path

import msgpack
import pytest

from agentkit.names import AgentId
from startup.spec.fleet import AgentTarget, Fleet, ProgramTarget, SecretRef
from startup.spec.wire import fleet_from_wire
from tests.startup.spec.projects import agents, loaded, of, one

TWO = "machines: {a: {}, b: {}}\n"


def fleet_of(tmp_path: Path, text: str) -> Fleet:
    found = loaded(tmp_path, text)
    assert found.fleet is not None, found.problems
    return found.fleet


def test_defaults_fill_in_key_by_key_and_an_agents_own_keys_win(tmp_path: Path) -> None:
    text = "defaults: {restart: {delay: 5s, max_attempts: 9}, env: {A: x, B: x}, watchdog: 1m}\n" + agents(
        "A: {agent: 'm:C', restart: {delay: 2s}, env: {B: y}}\nB: {agent: 'm:C', watchdog: 0}"
    )
    first, second = fleet_of(tmp_path, text).agents
    assert (first.restart.delay_s, first.restart.max_attempts, first.restart.factor) == (2.0, 9, 2.0)
    assert first.env == {"A": "x", "B": "y"}
    assert (first.watchdog_s, second.watchdog_s) == (60.0, 0.0)


def test_targets_are_told_apart(tmp_path: Path) -> None:
    text = agents(
        "A: {agent: 'pkg.mod:Cls'}\nB: {script_path: agents/b.py}\nC: {script_path: 'agents/b.py:Cls'}\nD: {command: [sleep, 5]}"
    )
    specs = fleet_of(tmp_path, text).agents
    script = "agents/b.py"
    assert [spec.target for spec in specs] == [
        AgentTarget(module="pkg.mod", cls="Cls"),
        AgentTarget(script=script),
        AgentTarget(script=script, cls="Cls"),
        ProgramTarget(argv=("sleep", "5")),
    ]


def test_a_dependency_means_the_agent_of_the_same_machine_else_the_only_one(tmp_path: Path) -> None:
    text = (
        TWO
        + """
agent_groups:
  one:
    Hub: {agent: 'm:C', machine: a}
    A: {agent: 'm:C', machine: a, dependencies: [Hub, Only]}
  two:
    Hub: {agent: 'm:C', machine: b}
    Only: {agent: 'm:C', machine: b, dependencies: [Hub, a/Hub]}
"""
    )
    fleet = fleet_of(tmp_path, text)
    edges = {str(spec.id): [str(id) for edge in spec.dependencies for id in edge.agents] for spec in fleet.agents}
    assert edges["a/A"] == ["a/Hub", "b/Only"]
    assert edges["b/Only"] == ["b/Hub", "a/Hub"]


def test_a_name_on_two_other_machines_is_ambiguous(tmp_path: Path) -> None:
    text = (
        "machines: {a: {}, b: {}, c: {}}\n"
        """
agent_groups:
  one: {Hub: {agent: 'm:C', machine: a}}
  two: {Hub: {agent: 'm:C', machine: b}, A: {agent: 'm:C', machine: c, dependencies: [Hub]}}
"""
    )
    assert one(loaded(tmp_path, text), "ambiguous-dependency").fix == "write `a/Hub` or `b/Hub`"


def test_replicas_are_one_dependency_that_any_of_them_fulfils(tmp_path: Path) -> None:
    text = agents(
        "A: {agent: 'm:C', dependencies: [{name: B, required: false, condition: started}]}\nB: {agent: 'm:C', replicas: 2}"
    )
    (edge,) = fleet_of(tmp_path, text).agents[0].dependencies
    assert [id.slot for id in edge.agents] == [0, 1]
    assert (edge.required, edge.condition) == (False, "started")


def test_externals_are_dependencies_too(tmp_path: Path) -> None:
    text = "external: {Redis: {tcp: '${REDIS_HOST:-127.0.0.1}:6379'}}\n" + agents(
        "A: {agent: 'm:C', dependencies: [Redis]}"
    )
    fleet = fleet_of(tmp_path, text)
    assert fleet.agents[0].dependencies[0].external == "Redis"
    assert fleet.externals[0].tcp == "127.0.0.1:6379"


def test_a_missing_dependency_suggests_the_nearest_names(tmp_path: Path) -> None:
    problem = one(
        loaded(tmp_path, agents("Cache: {agent: 'm:C'}\nA: {agent: 'm:C', dependencies: [Chache]}")),
        "missing-dependency",
    )
    assert problem.fix == "did you mean `Cache`?"
    assert problem.place.endswith(":6")


def test_a_name_may_be_there_once_per_machine(tmp_path: Path) -> None:
    text = "agent_groups:\n  one: {A: {agent: 'm:C'}}\n  two: {A: {agent: 'm:C'}}\n"
    assert "agent_groups.one.A" in one(loaded(tmp_path, text), "duplicate-name").found


def test_the_machine_may_be_left_out_only_when_there_is_one(tmp_path: Path) -> None:
    assert fleet_of(tmp_path, agents("A: {agent: 'm:C'}")).agents[0].machine == "local"
    assert one(loaded(tmp_path, TWO + agents("A: {agent: 'm:C'}")), "unknown-machine").want == "one of `machines`: a, b"


def test_the_class_is_the_agents_else_the_groups_else_the_groups_name_else_standard(tmp_path: Path) -> None:
    text = """
agent_groups:
  core: {A: {agent: 'm:C'}, B: {agent: 'm:C', class: debug}}
  mine: {class: monitoring, D: {agent: 'm:C'}}
  other: {E: {agent: 'm:C'}}
"""
    fleet = fleet_of(tmp_path, text)
    assert [spec.klass for spec in fleet.agents] == ["core", "debug", "monitoring", "standard"]
    assert [spec.port for spec in fleet.agents] == [10100, 10500, 10400, 10200]


def test_an_unknown_class_is_an_error(tmp_path: Path) -> None:
    assert one(loaded(tmp_path, agents("A: {agent: 'm:C', class: cor}")), "unknown-class").fix == "did you mean `core`?"


def test_every_key_of_an_agent_reaches_its_spec(tmp_path: Path) -> None:
    text = agents(
        """A: {agent: 'm:C', kind: task, required: false, enabled: false, ready: {http: /up}, pass_env: [X], start: {timeout: 5s},
      secrets: {T: {file: /s, as_env: true}, U: {env: U}}, config: {n: [1, {k: v}]}, shutdown: {grace: 2s}, watchdog: 3s,
      trace: {sample: 0.5}, resource_memory: 1Gi,
      resources: {limits: {memory: 256Mi, cpu: 0.5}, requests: {memory: 128Mi}, cpu_affinity: [0, 1]},
      health_check: {interval: 1s, timeout: 500ms, retries: 2}, hibernate: {after: 1m, depth: deep}, sockets: self}""".replace(
            "\n", " "
        )
    )
    (spec,) = fleet_of(tmp_path, text).agents
    assert (spec.kind, spec.required, spec.enabled, spec.sockets, spec.ready.http_url) == (
        "task",
        False,
        False,
        "self",
        "/up",
    )
    assert spec.trace_sample == 0.5
    assert (spec.start_timeout_s, spec.shutdown_grace_s, spec.watchdog_s, spec.pass_env) == (5.0, 2.0, 3.0, ("X",))
    assert spec.secrets == {"T": SecretRef(file="/s", as_env=True), "U": SecretRef(env="U")}
    assert type(spec.config["n"]) is list
    assert spec.config == {"n": [1, {"k": "v"}]}
    assert (spec.resources.memory_limit_bytes, spec.resources.memory_request_bytes) == (268435456, 134217728)
    assert (spec.resources.cpu_limit, spec.resources.cpu_affinity) == (0.5, (0, 1))
    assert (spec.health_check.interval_s, spec.health_check.timeout_s, spec.health_check.retries) == (1.0, 0.5, 2)
    assert (spec.hibernate.after_s, spec.hibernate.depth) == (60.0, "deep")
    assert spec.resource_memory_bytes == 2**30
    assert spec.source.endswith("fleet.yaml:5")


def test_a_path_of_a_program_without_health_port_is_asked_on_its_service_port(tmp_path: Path) -> None:
    (spec,) = fleet_of(tmp_path, agents("A: {command: [x], port: 10100, ready: {http: /up}}")).agents
    assert spec.ready.http_url == "http://127.0.0.1:10100/up"


def test_environment_values_are_text(tmp_path: Path) -> None:
    (spec,) = fleet_of(tmp_path, agents("A: {agent: 'm:C', env: {N: 5, B: true, S: '${X:-7}', F: 0.10}}")).agents
    assert spec.env == {"N": "5", "B": "true", "S": "7", "F": "0.10"}


def test_secrets_stay_references(tmp_path: Path) -> None:
    found = loaded(tmp_path, agents("A: {agent: 'm:C', secrets: {T: {env: TOKEN}}}"), environ={"TOKEN": "hunter2"})
    assert found.fleet is not None
    assert "hunter2" not in repr(found.fleet)


def test_the_cluster_may_be_named_by_the_caller(tmp_path: Path) -> None:
    found = loaded(tmp_path, agents("A: {agent: 'm:C'}"), cluster="other")
    assert found.fleet is not None
    assert found.fleet.cluster == "other"


def test_a_fleet_survives_the_wire(tmp_path: Path) -> None:
    text = (
        TWO
        + "external: {R: {tcp: 'h:1'}}\nphases: [[core]]\n"
        + agents("A: {agent: 'm:C', machine: a, dependencies: [R], config: {x: [1]}}")
    )
    fleet = fleet_of(tmp_path, text)
    for sent in (msgpack.unpackb(msgpack.packb(fleet.to_wire())), json.loads(json.dumps(fleet.to_wire()))):
        received = fleet_from_wire(sent)
        assert received == fleet
        assert received.digest() == fleet.digest()
    assert fleet.agent(AgentId.parse("a/A")).digest() == received.agents[0].digest()


def test_a_disabled_dependency_can_not_be_fulfilled(tmp_path: Path) -> None:
    text = agents(
        """A: {agent: 'm:C', enabled: false}
        B: {agent: 'm:C', dependencies: [A]}
        C: {agent: 'm:C', dependencies: [{name: A, required: false}]}"""
    )
    assert len(of(loaded(tmp_path, text), "disabled-dependency")) == 1


@pytest.mark.parametrize("value", ["1", "'3'", "25%", "100%"])
def test_a_rollout_is_a_number_of_agents_or_a_part_of_them(tmp_path: Path, value: str) -> None:
    text = f"rollout: {{max_unavailable: {value}, rollback: false}}\n" + agents("A: {agent: 'm:C'}")
    fleet = fleet_of(tmp_path, text)
    assert (fleet.rollout.max_unavailable, fleet.rollout.rollback) == (value.strip("'"), False)
    assert fleet.port_ranges["core"] == (10100, 10199)


@pytest.mark.parametrize("value", ["0", "101%", "many", "1.5", "true", "-1", "[1]"])
def test_any_other_is_refused(tmp_path: Path, value: str) -> None:
    found = loaded(tmp_path, f"rollout: {{max_unavailable: {value}}}\n" + agents("A: {agent: 'm:C'}"))
    assert any(problem.at == "rollout.max_unavailable" for problem in found.problems), found.problems


def test_a_machines_own_memory_budget_goes_before_that_of_the_file(tmp_path: Path) -> None:
    entry = agents("A: {agent: 'm:C', machine: a}")
    fleet = fleet_of(tmp_path, "memory_budget: 8Gi\nmachines: {a: {}, b: {memory_budget: 2Gi}}\n" + entry)
    assert [fleet.memory_budget_of(name) for name in ("a", "b", "c")] == [8 * 2**30, 2 * 2**30, None]
    assert fleet_from_wire(json.loads(json.dumps(fleet.to_wire()))) == fleet
    assert fleet_of(tmp_path, TWO + entry).memory_budget_of("a") is None
