from __future__ import annotations

import json
from pathlib import Path

import pytest

from startup.cli import exits
from startup.cli.main import main
from tests.startup.spec.projects import HEAD, write

pytestmark = pytest.mark.process

FLEET = (
    HEAD
    + """
machines: {a: {}, b: {}}
external: {Redis: {tcp: '127.0.0.1:6379'}}
agent_groups:
  core:
    A: {command: [sleep, 5], machine: a, dependencies: [Redis]}
    B: {command: [sleep, 5], machine: b, dependencies: [A], required: false}
    C: {command: [sleep, 5], machine: a, dependencies: [A, {name: B, required: false}]}
    Off: {command: [sleep, 5], machine: a, enabled: false}
"""
)


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"fleet.yaml": FLEET, "cycle.yaml": FLEET.replace("[Redis]", "[C]")})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def test_the_text_shows_levels_and_the_longest_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "fleet.yaml"]) == exits.DONE
    assert (
        capsys.readouterr().out
        == """\
test: 4 agents (a 3, b 1), 3 levels

level  0    1  A
level  1    1  B?
level  2    1  C

disabled  Off

longest path, 3 agents: A > B > C
`?`: optional
"""
    )


def test_json_holds_the_graph_and_the_ports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "fleet.yaml", "--json"]) == exits.DONE
    document = json.loads(capsys.readouterr().out)
    assert document["levels"] == [["a/A"], ["b/B"], ["a/C"]]
    assert document["critical_path"] == ["a/A", "b/B", "a/C"]
    third = document["agents"][2]
    assert (third["id"], third["level"], third["port"]) == ("a/C", 2, 10102)
    assert third["dependencies"][1] == {
        "name": "B",
        "agents": ["b/B"],
        "external": None,
        "required": False,
        "condition": "healthy",
    }


def test_mermaid_has_a_frame_per_machine_and_dotted_optional_edges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "fleet.yaml", "-f", "mermaid"]) == exits.DONE
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "graph LR"
    assert {"subgraph a", 'a0["A"]', 'a1(["B"])', 'x0[("Redis")]', "a0 --> x0", "a1 --> a0", "a2 -.-> a1"} <= set(lines)


def test_dot_is_a_digraph_with_a_cluster_per_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "fleet.yaml", "-f", "dot"]) == exits.DONE
    out = capsys.readouterr().out
    assert out.startswith('digraph "test" {')
    assert out.count("{") == out.count("}")
    assert 'subgraph "cluster_a"' in out
    assert "a2 -> a1 [style=dashed];" in out


def test_a_file_with_errors_has_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "cycle.yaml"]) == exits.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert "A -> C -> A" in err
