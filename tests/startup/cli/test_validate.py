"""`validate` as its users see it; modules are really looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from startup.cli import exits
from startup.cli.main import main
from tests.startup.spec.projects import AGENT, HEAD, write

pytestmark = pytest.mark.process

GOOD = HEAD + "agent_groups:\n  core:\n    A: {agent: 'work:Worker', class: core, port: 10110}\n"
BAD = GOOD + "    B: {agent: 'work:Worker', port: 10110, dependencies: [Nobody], watchdog: 5}\n"


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"work.py": AGENT, "good.yaml": GOOD, "bad.yaml": BAD})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AGENTKIT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("COLUMNS", "80")


def test_a_good_file_has_no_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "good.yaml"]) == exits.DONE
    assert capsys.readouterr().out == "test: 1 agent on 1 machine; no problems\n"


def test_a_bad_file_is_told_line_by_line_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "bad.yaml"]) == exits.USAGE
    out = capsys.readouterr().out
    assert (
        out
        == """\
3 errors
  bad.yaml:6  agent_groups.core.B.watchdog
      5
      want: a duration such as 300ms, 10s, 5m or 1h
      fix:  add the unit: 5s
  bad.yaml:6  agent_groups.core.B.dependencies
      `Nobody`, which nobody here is called
      want: an agent or a name of `external`
      fix:  add it, or remove it here
  bad.yaml:6  agent_groups.core.B.port
      port 10110 is the service port of local/A too (bad.yaml:5), on 127.0.0.1
      want: a port of its own
      fix:  10102 is free

test: 2 agents on 1 machine; 3 errors
"""
    )


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "bad.yaml", "--json"]) == exits.USAGE
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert (document["cluster"], document["ok"], document["agents"]) == ("test", False, 2)
    assert {problem["check"] for problem in document["problems"]} == {"value", "missing-dependency", "port-clash"}
    assert set(document["problems"][0]) == {"severity", "check", "place", "at", "found", "want", "fix"}


def test_a_file_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nope.yaml"]) == exits.USAGE
    assert "nope.yaml" in capsys.readouterr().out


def test_the_default_file_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(tmp_path, {"startup_config.yaml": GOOD})
    assert main(["validate"]) == exits.DONE
    assert "1 agent" in capsys.readouterr().out


def test_older_files_are_given_a_machine_each(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(tmp_path, {"old.yaml": "services: [{name: A, script: work.py, port: 10110}]\n"})
    assert main(["validate", "--machine", "pc=old.yaml", "--cluster", "both", "--json"]) == exits.DONE
    document = json.loads(capsys.readouterr().out)
    assert (document["cluster"], document["machines"]) == ("both", 1)


@pytest.mark.parametrize("words", [["--machine", "pc"], ["--machine", "a=x", "--machine", "a=y"]])
def test_a_machine_option_that_can_not_be_read_is_bad_usage(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(["validate", *words]) == exits.USAGE
    assert "NAME=FILE" in capsys.readouterr().err
