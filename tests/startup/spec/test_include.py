from __future__ import annotations

from pathlib import Path

from tests.startup.spec.projects import agents, loaded, of, one, write


def test_included_files_are_merged_in_order(tmp_path: Path) -> None:
    write(tmp_path, {
        "one.yaml": "include: [sub/two.yaml]\nmachines: {b: {}}\npreload: [json]\nagent_groups: {core: {B: {agent: 'm:C', machine: b}}}\n",
        "sub/two.yaml": "version: 1\npreload: [csv]\nagent_groups: {extra: {D: {agent: 'm:C', machine: a}}}\n",
    })  # fmt: skip
    text = "include: [one.yaml]\nmachines: {a: {}}\n" + agents("A: {agent: 'm:C', machine: a}")
    fleet = loaded(tmp_path, text).fleet
    assert fleet is not None
    assert [str(id) for id in fleet.ids()] == ["a/A", "b/B", "a/D"]
    assert fleet.preload == ("json", "csv")


def test_a_clash_names_both_files(tmp_path: Path) -> None:
    write(tmp_path, {"more.yaml": "registry: consul\nagent_groups:\n  core:\n    A: {agent: 'm:D'}\n"})
    found = of(
        loaded(tmp_path, "registry: mesh\ninclude: [more.yaml]\n" + agents("A: {agent: 'm:C'}")), "include-clash"
    )
    assert [problem.at for problem in found] == ["registry", "agent_groups.core.A"]
    assert all("more.yaml" in problem.found and "fleet.yaml" in problem.found for problem in found)


def test_a_file_that_is_not_there_is_an_error_at_its_line(tmp_path: Path) -> None:
    problem = one(loaded(tmp_path, "include:\n  - nope.yaml\n" + agents("A: {agent: 'm:C'}")), "include")
    assert problem.place.endswith("fleet.yaml:4")


def test_files_that_include_each_other_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"more.yaml": "include: [fleet.yaml]\n"})
    assert "already" in one(loaded(tmp_path, "include: [more.yaml]\n" + agents("A: {agent: 'm:C'}")), "include").found


def test_problems_of_an_included_file_are_placed_there(tmp_path: Path) -> None:
    write(tmp_path, {"more.yaml": "agent_groups:\n  core:\n    B: {agent: 'm:C', prot: 5}\n"})
    problem = one(loaded(tmp_path, "include: [more.yaml]\n" + agents("A: {agent: 'm:C'}")), "unknown-key")
    assert problem.place.endswith("more.yaml:3")


def test_project_root_counts_from_the_file_that_says_it(tmp_path: Path) -> None:
    write(tmp_path, {"sub/more.yaml": "project_root: here\n"})
    fleet = loaded(tmp_path, "include: [sub/more.yaml]\n" + agents("A: {agent: 'm:C'}")).fleet
    assert fleet is not None
    assert fleet.project_root == str(tmp_path / "sub/here")
