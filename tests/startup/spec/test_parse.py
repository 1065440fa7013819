from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from startup.spec import model
from startup.spec.model import FileModel
from tests.startup.spec.projects import agents, loaded, of, one


def test_an_unknown_key_is_an_error_with_the_nearest_known_one(tmp_path: Path) -> None:
    problem = one(loaded(tmp_path, agents("A: {agent: 'm:C', dependancies: []}")), "unknown-key")
    assert problem.at == "agent_groups.core.A.dependancies"
    assert problem.fix == "did you mean `dependencies`?"


@pytest.mark.parametrize(
    ("text", "at", "near"),
    [
        ("regsitry: mesh", "regsitry", "registry"),
        ("machines: {a: {hots: x}}", "machines.a.hots", "host"),
        ("machines: {a: {ssh: {usr: x}}}", "machines.a.ssh.usr", "user"),
        ("external: {R: {tpc: 'h:1'}}", "external.R.tpc", "tcp"),
        ("defaults: {restart: {max_atempts: 1}}", "defaults.restart.max_atempts", "max_attempts"),
    ],
)
def test_the_nearest_key_is_known_at_every_depth(tmp_path: Path, text: str, at: str, near: str) -> None:
    found = of(loaded(tmp_path, text + "\n" + agents("A: {agent: 'm:C'}")), "unknown-key")
    assert [(problem.at, problem.fix) for problem in found] == [(at, f"did you mean `{near}`?")]


def test_an_unknown_key_inside_a_dependency_is_named(tmp_path: Path) -> None:
    text = agents("A: {agent: 'm:C', dependencies: [{name: B, requried: false}]}\nB: {agent: 'm:C'}")
    problem = one(loaded(tmp_path, text), "unknown-key")
    assert problem.at == "agent_groups.core.A.dependencies.0.requried"
    assert problem.fix == "did you mean `required`?"


def test_a_duplicate_key_is_an_error(tmp_path: Path) -> None:
    found = loaded(tmp_path, agents("A: {agent: 'm:C'}\nA: {agent: 'm:D'}"))
    assert one(found, "duplicate-key").place.endswith(":6")
    assert found.fleet is None


def test_all_problems_of_a_file_are_reported_in_one_run(tmp_path: Path) -> None:
    text = """
        A: {agent: 'm:C', watchdog: 5, start: {timeout: soon}, prot: 1}
        B: {agent: 'm.C', port: many, required: perhaps, dependencies: [Nobody]}
        C: {agent: 'm:C', replicas: 0, kind: thing, ready: {tcp: 5, http: /x}, secrets: {T: {}}}
    """
    found = loaded(tmp_path, "cluster: 'no name'\nversion: 1\n" + agents(text))
    assert {problem.at.rpartition("core.")[2] for problem in found.problems} == {
        "cluster", "A.watchdog", "A.start.timeout", "A.prot", "B.agent", "B.port", "B.required", "B.dependencies",
        "C.replicas", "C.kind", "C.ready", "C.secrets.T",
    }  # fmt: skip
    assert all(problem.want or problem.fix for problem in found.problems)


def test_a_file_without_version_or_cluster_is_told_so(tmp_path: Path) -> None:
    found = loaded(tmp_path, "# version: 1\nmachines: {a: {}}\n" + agents("A: {agent: 'm:C'}"))
    assert [problem.at for problem in of(found, "missing-key")] == ["version", "cluster"]


def test_a_group_inside_a_group_is_an_error(tmp_path: Path) -> None:
    problem = one(loaded(tmp_path, agents("inner: {A: {agent: 'm:C'}}")), "no-agent")
    assert "group inside a group" in problem.found


@pytest.mark.parametrize(
    "entry", ["A: {env: {X: 1}}", "A:", "A: 5", "A: {scrpt_path: x.py}", "A: {agent: 'm:C', command: [x]}"]
)
def test_an_entry_that_is_no_agent_is_an_error(tmp_path: Path, entry: str) -> None:
    assert one(loaded(tmp_path, agents(entry)), "no-agent").severity == "error"


@pytest.mark.parametrize(
    "text", ["agent_groups: {}", "agent_groups:", "agent_groups: []", "agent_groups: {core: }", ""]
)
def test_a_file_without_agents_is_an_error(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text).errors


def test_names_that_can_not_be_part_of_an_id_are_errors(tmp_path: Path) -> None:
    found = of(loaded(tmp_path, agents("a/b: {agent: 'm:C'}\n'x#1': {agent: 'm:C'}")), "name")
    assert len(found) == 2


def test_every_key_is_described_in_the_schema() -> None:
    models = [value for value in vars(model).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    bare = [
        f"{one_model.__name__}.{name}"
        for one_model in models
        for name, info in one_model.model_fields.items()
        if not info.description
    ]
    assert bare == []


def test_the_schema_can_be_made_and_names_keys_as_files_do() -> None:
    schema = FileModel.model_json_schema(by_alias=True)
    assert "class" in schema["$defs"]["AgentSettings"]["properties"]
    assert schema["required"] == ["version", "cluster", "agent_groups"]
