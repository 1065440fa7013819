"""Older start files, unedited: tests/fixtures/older holds two in the shapes that are in use."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from startup.spec.load import Loaded, load
from tests.startup.spec.projects import of, one, write

OLDER = Path(__file__).parents[2] / "fixtures/older"


def two_files(**options: object) -> Loaded:
    return load(
        options.pop("path", None),  # type: ignore[arg-type]
        environ={},
        machines={"mainpc": OLDER / "main_pc.yaml", "pc2": OLDER / "pc2.yaml"},
        inspect=False,
        **options,  # type: ignore[arg-type]
    )


def one_file(folder: Path, text: str, overlay: str | None = None) -> Loaded:
    (folder / "old.yaml").write_text(dedent(text))
    if overlay is None:
        return load(folder / "old.yaml", environ={}, inspect=False)
    (folder / "overlay.yaml").write_text(dedent(overlay))
    return load(folder / "overlay.yaml", machines={"pc": folder / "old.yaml"}, environ={}, inspect=False)


def test_two_files_of_two_shapes_become_one_cluster() -> None:
    found = two_files()
    assert not found.errors
    assert found.fleet is not None
    assert [(machine.name, len(found.fleet.on(machine.name))) for machine in found.fleet.machines] == [
        ("mainpc", 54),
        ("pc2", 23),
    ]
    by_id = {str(spec.id): spec for spec in found.fleet.agents}
    assert (by_id["mainpc/ServiceRegistry"].port, by_id["mainpc/ServiceRegistry"].health_port) == (7200, 8200)
    assert by_id["mainpc/TinyLlamaServiceEnhanced"].required is False
    assert [str(id) for edge in by_id["mainpc/KnowledgeBase"].dependencies for id in edge.agents] == [
        "mainpc/MemoryClient",
        "mainpc/SystemDigitalTwin",
    ]
    assert "pc2/ObservabilityHub" in by_id
    assert "mainpc/ObservabilityHub" in by_id


def test_ports_outside_the_ranges_are_no_error_and_an_offset_shifts_them_once() -> None:
    shifted = two_files(port_offset=1000).fleet
    assert shifted is not None
    assert shifted.agents[0].port == 8200


def test_settings_beside_the_agents_are_named_and_never_taken_for_agents() -> None:
    found = two_files()
    assert {problem.at for problem in of(found, "not-used")} == {
        "global_settings", "agent_groups.experimental", "docker_groups", "environment", "health_checks", "host",
    }  # fmt: skip
    assert all(problem.severity == "warning" for problem in of(found, "not-used"))


def test_a_single_file_needs_nothing_else(tmp_path: Path) -> None:
    found = one_file(
        tmp_path,
        "services:\n  - {name: A, script: a.py, port: 5}\n  - {name: B, file_path: b.py, dependencies: [A], critical: false}\n",
    )
    assert not found.errors
    assert found.fleet is not None
    assert [(spec.name, spec.machine, spec.required) for spec in found.fleet.agents] == [
        ("A", "local", True),
        ("B", "local", False),
    ]
    assert found.fleet.cluster == "old"
    assert one(found, "older-shape").severity == "note"


def test_the_project_root_is_the_folder_above_below_which_the_scripts_are(tmp_path: Path) -> None:
    write(tmp_path, {"pc/agents/a.py": "", "pc/config/.keep": ""})
    found = one_file(tmp_path / "pc/config", "agent_groups: {core: {A: {script_path: pc/agents/a.py}}}\n")
    assert found.fleet is not None
    assert found.fleet.project_root == str(tmp_path)


def test_an_overlay_fills_in_what_the_file_leaves_out_and_changes_nothing_else(tmp_path: Path) -> None:
    old = "agents:\n  - {name: A, script_path: a.py, port: 7000, env: {X: old}}\n"
    overlay = """
        cluster: merged
        machines: {pc: {host: localhost, node_port: 10001}}
        defaults: {watchdog: 5s}
        agent_groups:
          more:
            A: {port: 1, kind: task}
            Extra: {command: [sleep, 5], machine: pc}
    """
    found = one_file(tmp_path, old, overlay)
    assert not found.errors
    assert found.fleet is not None
    a, extra = found.fleet.agents
    assert (found.fleet.cluster, found.fleet.machines[0].node_port) == ("merged", 10001)
    assert (a.port, a.kind, a.env, a.watchdog_s, a.group) == (7000, "task", {"X": "old"}, 5.0, "agents")
    assert extra.name == "Extra"


def test_an_overlay_for_an_agent_that_no_file_has_is_an_error(tmp_path: Path) -> None:
    found = one_file(tmp_path, "agents: [{name: A, script_path: a.py}]\n", "agent_groups: {g: {B: {kind: task}}}\n")
    assert "`B`" in one(found, "overlay").found


def test_wrong_values_of_used_keys_are_errors_and_of_others_warnings(tmp_path: Path) -> None:
    found = one_file(
        tmp_path,
        "agents: [{name: A, script_path: a.py, port: many, restart: often, watchdog: 5s, dependencies: [Nobody]}]\n",
    )
    assert [problem.at for problem in found.errors] == ["agents[0].port", "agents[0].dependencies"]
    assert one(found, "not-used").at == "restart"


def test_clashes_and_cycles_are_errors_in_older_files_too(tmp_path: Path) -> None:
    text = """
        agents:
        - {name: A, script_path: a.py, port: 7000, dependencies: [B]}
        - {name: B, script_path: b.py, port: 7000, dependencies: [A]}
    """
    found = one_file(tmp_path, text)
    assert of(found, "cycle")
    assert of(found, "port-clash")


def test_entries_without_a_name_are_called_after_their_script(tmp_path: Path) -> None:
    found = one_file(tmp_path, "agents: [{script_path: src/reader.py}]\n")
    assert found.fleet is not None
    assert found.fleet.agents[0].name == "reader"


@pytest.mark.parametrize("text", ["agents: [{name: A}]\n", "agent_groups: {g: {A: {port: 5}}}\n"])
def test_a_file_without_any_script_is_no_older_shape(tmp_path: Path, text: str) -> None:
    assert one_file(tmp_path, text).errors


def test_a_file_that_is_not_there_is_an_error() -> None:
    found = load(None, machines={"a": Path("/nowhere/x.yaml")}, environ={})
    assert one(found, "file").place == "/nowhere/x.yaml"
    assert found.fleet is None
