from __future__ import annotations

from pathlib import Path

import pytest

from startup.spec.hosts import host_key
from tests.startup.spec.projects import agents, loaded, of, one


def test_a_cycle_is_an_error_with_its_path_and_a_fix(tmp_path: Path) -> None:
    text = agents(
        """A: {agent: 'm:C', dependencies: [B]}
        B: {agent: 'm:C', dependencies: [D]}
        D: {agent: 'm:C', dependencies: [A]}"""
    )
    found = loaded(tmp_path, text)
    problem = one(found, "cycle")
    assert problem.found == "A -> B -> D -> A"
    assert problem.place.endswith(":7")
    assert problem.fix.startswith("remove `A` from D's dependencies")
    assert found.errors


def test_every_cycle_is_reported_in_one_run(tmp_path: Path) -> None:
    text = agents(
        """A: {agent: 'm:C', dependencies: [A]}
        B: {agent: 'm:C', dependencies: [D], replicas: 3}
        D: {agent: 'm:C', dependencies: [B]}"""
    )
    assert sorted(problem.found for problem in of(loaded(tmp_path, text), "cycle")) == ["A -> A", "B -> D -> B"]


def test_a_cycle_over_two_machines_names_them_where_a_name_is_on_both(tmp_path: Path) -> None:
    text = """
machines: {a: {}, b: {}}
agent_groups:
  one: {Hub: {agent: 'm:C', machine: a, dependencies: [X]}}
  two: {Hub: {agent: 'm:C', machine: b}, X: {agent: 'm:C', machine: b, dependencies: [a/Hub]}}
"""
    assert one(loaded(tmp_path, text), "cycle").found == "a/Hub -> X -> a/Hub"


def test_a_required_agent_that_needs_an_optional_one_is_a_warning(tmp_path: Path) -> None:
    text = "A: {agent: 'm:C', required: false}\nB: {agent: 'm:C', dependencies: [A]}"
    problem = one(loaded(tmp_path, agents(text)), "optional-dependency")
    assert problem.severity == "warning"
    assert not loaded(tmp_path, agents(text.replace("[A]", "[{name: A, required: false}]"))).problems


def test_waiting_for_a_service_to_complete_is_an_error(tmp_path: Path) -> None:
    text = "A: {agent: 'm:C'}\nB: {agent: 'm:C', dependencies: [{name: A, condition: completed}]}"
    assert one(loaded(tmp_path, agents(text)), "never-completed").fix == "give A `kind: task`"
    assert not loaded(tmp_path, agents(text.replace("{agent: 'm:C'}", "{agent: 'm:C', kind: task}", 1))).problems


def test_a_machine_nobody_uses_is_a_warning(tmp_path: Path) -> None:
    problem = one(
        loaded(tmp_path, "machines: {a: {}, b: {}}\n" + agents("A: {agent: 'm:C', machine: a}")), "unused-machine"
    )
    assert (problem.severity, problem.at) == ("warning", "machines.b")


def test_binding_beyond_loopback_needs_security_written_out(tmp_path: Path) -> None:
    text = "machines: {a: {host: '${H:-203.0.113.5}', node_port: 10001}}\n" + agents("A: {agent: 'm:C'}")
    assert "security: none" in one(loaded(tmp_path, text), "security").fix
    assert not loaded(tmp_path, "security: none\n" + text).problems
    keys = loaded(tmp_path, "security: {keys: ~/keys}\n" + text)
    assert not keys.errors
    assert keys.fleet is not None
    assert keys.fleet.security == "curve"


def test_the_place_of_the_project_on_a_machine_elsewhere_is_an_absolute_path(tmp_path: Path) -> None:
    text = "security: none\nmachines: {a: {host: '${H:-203.0.113.5}', node_port: 10001, workdir: %s}}\n" + agents(
        "A: {agent: 'm:C'}"
    )
    assert one(loaded(tmp_path, text % "srv/fleet"), "workdir").at == "machines.a.workdir"
    fleet = loaded(tmp_path, text % "/srv/fleet").fleet
    assert fleet is not None
    assert (fleet.root_on("a"), fleet.machines[0].root) == ("/srv/fleet", "/srv/fleet")
    here = loaded(tmp_path, text % "/srv/fleet", environ={"H": "127.0.0.1"}).fleet
    assert here is not None
    assert here.root_on("a") == here.project_root, "on this host it is only where processes work"


@pytest.mark.parametrize("jump", ["gate", "ops@gate", "ops@192.0.2.1:2222"])
def test_a_jump_host_may_have_a_user_and_a_port(tmp_path: Path, jump: str) -> None:
    text = f"machines: {{a: {{ssh: {{jump: '{jump}'}}}}}}\n" + agents("A: {agent: 'm:C'}")
    fleet = loaded(tmp_path, text).fleet
    assert fleet is not None
    assert fleet.machines[0].ssh is not None
    assert fleet.machines[0].ssh.jump == jump


def test_nothing_else_is_a_jump_host(tmp_path: Path) -> None:
    text = "machines: {a: {ssh: {jump: 'ops@gate; rm -r'}}}\n" + agents("A: {agent: 'm:C'}")
    assert loaded(tmp_path, text).errors


def test_a_folder_of_keys_is_named_so_that_it_is_the_same_from_everywhere(tmp_path: Path) -> None:
    assert not loaded(tmp_path, "security: {keys: ~/keys}\n" + agents("A: {agent: 'm:C'}")).errors
    found = loaded(tmp_path, "security: {keys: keys}\n" + agents("A: {agent: 'm:C'}")).errors
    assert any("an absolute path" in problem.want for problem in found)


def test_a_machine_elsewhere_needs_a_node_port(tmp_path: Path) -> None:
    text = "security: none\nmachines: {a: {host: '${H:-203.0.113.5}'}}\n" + agents("A: {agent: 'm:C'}")
    assert one(loaded(tmp_path, text), "node-port").at == "machines.a"


def test_a_literal_address_is_a_warning(tmp_path: Path) -> None:
    problem = one(
        loaded(tmp_path, agents("A: {agent: 'm:C', env: {URL: 'tcp://192.168.100.16:5555'}}")), "literal-address"
    )
    assert problem.severity == "warning"


def test_an_external_and_an_agent_of_one_name_are_an_error(tmp_path: Path) -> None:
    text = "external: {A: {tcp: 'h:1'}}\n" + agents("A: {agent: 'm:C'}")
    assert one(loaded(tmp_path, text), "duplicate-name").at == "external.A"


@pytest.mark.parametrize("probe", ["{}", "{tcp: x}", "{tcp: 'h:99999'}", "{tcp: 'h:1', http: 'http://h'}"])
def test_an_external_needs_exactly_one_probe_that_can_be_made(tmp_path: Path, probe: str) -> None:
    assert (
        one(loaded(tmp_path, f"external: {{R: {probe}}}\n" + agents("A: {agent: 'm:C'}")), "value").at == "external.R"
    )


def test_phases_name_groups_that_exist_once_each(tmp_path: Path) -> None:
    text = "phases: [[core], [cor], [core]]\n" + agents("A: {agent: 'm:C'}")
    found = loaded(tmp_path, text)
    assert one(found, "unknown-group").fix == "did you mean `core`?"
    assert "twice" in one(found, "phases").found


def test_restart_strategies_name_groups_that_exist_and_strategies_that_do(tmp_path: Path) -> None:
    text = "restart_strategies: {cor: all}\n" + agents("A: {agent: 'm:C'}")
    assert one(loaded(tmp_path, text), "unknown-group").fix == "did you mean `core`?"
    text = "restart_strategies: {core: everyone}\n" + agents("A: {agent: 'm:C'}")
    assert one(loaded(tmp_path, text), "value").at == "restart_strategies.core"
    good = loaded(tmp_path, "restart_strategies: {core: rest-for-one}\n" + agents("A: {agent: 'm:C'}"))
    assert good.resolved is not None
    assert good.resolved.fleet.restart_strategies == {"core": "rest-for-one"}


def test_a_dependency_on_a_later_phase_would_never_start(tmp_path: Path) -> None:
    text = """
phases: [[one], [two]]
agent_groups:
  one: {A: {agent: 'm:C', dependencies: [B]}}
  two: {B: {agent: 'm:C'}}
"""
    assert "whose phase comes after" in one(loaded(tmp_path, text), "phases").found
    assert not loaded(tmp_path, text.replace("[[one], [two]]", "[[two], [one]]")).problems


def test_ordinary_programs_are_named_with_what_they_do_not_get(tmp_path: Path) -> None:
    problem = one(loaded(tmp_path, agents("A: {command: [x]}\nB: {command: [y]}")), "programs")
    assert problem.severity == "note"
    assert "2 ordinary programs" in problem.found


def test_a_problem_is_one_sentence_with_place_value_expectation_and_fix(tmp_path: Path) -> None:
    text = str(one(loaded(tmp_path, agents("A: {agent: 'm:C', watchdog: 5}")), "value"))
    assert text.endswith(
        "fleet.yaml:5: agent_groups.core.A.watchdog: 5; want a duration such as 300ms, 10s, 5m or 1h; add the unit: 5s"
    )


def test_a_host_of_another_machine_is_its_address_and_ours_are_one() -> None:
    assert host_key("203.0.113.5") == "203.0.113.5"
    assert host_key("localhost") == host_key("127.0.0.2") == "127.0.0.1"


def test_a_module_of_several_agents_that_is_not_preloaded_is_a_note(tmp_path: Path) -> None:
    text = agents("A: {agent: 'pack.work:C'}\nB: {agent: 'pack.work:D', replicas: 3}\nC: {agent: 'other:C'}")
    problem = one(loaded(tmp_path, text), "preload")
    assert problem.severity == "note"
    assert "pack.work (4 agents)" in problem.found
    assert "preload: [pack.work]" in problem.fix
    for listed in ("pack.work", "pack"):
        assert not of(loaded(tmp_path, f"preload: [{listed}]\n{text}"), "preload")
