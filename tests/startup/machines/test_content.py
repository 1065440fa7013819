"""Which files of a project have to be equal on all machines."""

from __future__ import annotations

import subprocess
from pathlib import Path

from startup.machines import content


def project(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


def test_code_and_configuration_count_and_data_does_not(tmp_path: Path) -> None:
    project(
        tmp_path, "fleet.yaml", "agents/a.py", "agents/schema.sql", "README.md", "model.bin", ".env", ".hidden/x.py", "logs/a.json",
        "state/b.yaml", "data/c.json", "keys/d.toml", "agents/__pycache__/a.py", "env/lib/site.py", "env/pyvenv.cfg",
    )  # fmt: skip
    assert content.files(tmp_path) == ["agents/a.py", "agents/schema.sql", "fleet.yaml"]


def test_what_the_fleet_names_counts_whatever_it_is_called_but_only_below_the_root(tmp_path: Path) -> None:
    root = project(tmp_path / "root", "run-me", "a.py")
    project(tmp_path, "outside.py")
    named = [str(root / "run-me"), str(root / "gone.py"), str(tmp_path / "outside.py")]
    assert content.files(root, named) == ["a.py", "run-me"]


def test_git_decides_where_it_is_asked_and_the_disk_says_what_stands_in_a_file(tmp_path: Path) -> None:
    project(tmp_path, "data/known.py", "new.py", "sub/deep.yaml", "removed.py")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "data/known.py", "sub", "removed.py")
    (tmp_path / "removed.py").unlink()
    assert content.files(tmp_path) == ["data/known.py", "sub/deep.yaml"]
    assert content.files(tmp_path / "sub") == ["deep.yaml"], "a project may be a part of a repository"
    before = content.digests(tmp_path, ["data/known.py"])
    (tmp_path / "data/known.py").write_text("edited, not committed")
    assert content.digests(tmp_path, ["data/known.py"]) != before


def test_differences_are_told_by_file(tmp_path: Path) -> None:
    ours = content.digests(
        project(tmp_path / "a", "same.py", "changed.py", "missing.py"), ["same.py", "changed.py", "missing.py"]
    )
    there = project(tmp_path / "b", "same.py", "changed.py", "more.py")
    (there / "changed.py").write_text("another")
    assert content.differing(ours, content.digests(there, ours)) == (["changed.py"], ["missing.py"])
    assert content.differing(ours, ours) == ([], [])


def test_nothing_is_read_outside_of_the_root(tmp_path: Path) -> None:
    project(tmp_path, "secret.py", "root/a.py")
    found = content.digests(tmp_path / "root", ["a.py", "../secret.py", str(tmp_path / "secret.py"), "none.py"])
    assert [path for path, digest in found.items() if digest] == ["a.py"]
