"""How `up` tells people to type the next command."""

from __future__ import annotations

from pathlib import Path

import pytest

from startup.cli.common import as_typed


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / ".venv" / "bin" / "agentkit"
    found.parent.mkdir(parents=True)
    found.touch()
    monkeypatch.chdir(tmp_path)
    return found


def test_a_program_that_path_finds_is_its_name(program: Path) -> None:
    assert as_typed(str(program), ["/nowhere", str(program.parent)]) == "agentkit"


def test_a_program_outside_of_path_is_told_with_its_place(program: Path) -> None:
    assert as_typed(str(program), ["/nowhere"]) == ".venv/bin/agentkit"


def test_another_program_of_that_name_in_path_does_not_count(program: Path, tmp_path: Path) -> None:
    (tmp_path / "agentkit").touch()
    assert as_typed(str(program), [str(tmp_path), str(program.parent)]) == ".venv/bin/agentkit"


def test_the_module_is_told_as_such() -> None:
    assert as_typed("/x/startup/__main__.py", []) == "python -m startup"
