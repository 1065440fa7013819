from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from startup.cli import exits
from startup.cli.main import COMMANDS, main

#: What the quick commands may not load: each costs tens of milliseconds.
HEAVY = ("pydantic", "typer", "rich", "zmq", "yaml", "asyncio", "uvloop", "prometheus_client", "starlette")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (exits.DONE, "agentkit 0.1.0\n", "")


@pytest.mark.process
@pytest.mark.parametrize("words", [["--version"], ["nonsense"], ["--help"]])
def test_nothing_heavy_is_imported_where_nothing_heavy_is_needed(words: list[str]) -> None:
    code = f"import sys\nfrom startup.cli.main import main\nmain({words!r})\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == exits.DONE
    assert all(f"  {name} " in out for name in COMMANDS)
    assert all(len(line) <= 100 for line in out.splitlines())


def test_no_command_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys)[0] == exits.USAGE


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "validat")
    assert (code, out) == (exits.USAGE, "")
    assert "did you mean `validate`?" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_manual_page_and_the_common_options(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == exits.DONE
    assert "--json" in out
    assert "--cluster" in out


def test_a_wrong_option_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "schema", "--nope")
    assert (code, out) == (exits.USAGE, "")
    assert "--nope" in err


def test_a_file_that_is_named_nowhere_is_bad_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "validate", "--json")
    assert code == exits.USAGE
    assert '"code": "ConfigError"' in out
    assert "configs/startup_config.yaml" in err


def test_wrong_usage_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "up", "--bogus", "--json")
    assert code == exits.USAGE
    assert json.loads(out)["error"]["message"] == "unrecognized arguments: --bogus"
    assert "usage: agentkit up" in err


def test_a_file_that_can_t_be_used_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "file" / "keys"
    folder.parent.write_text("")
    code, out, err = run(capsys, "keys", "init", "--dir", str(folder))
    assert (code, out) == (exits.USAGE, "")
    assert err.startswith(f"agentkit: {folder.parent}: got 'File exists'")
