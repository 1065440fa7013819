"""Every command as an operator or a script uses it: one document with --json, and exit codes that mean what the manual says."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from startup.plan.phase import Phase
from tests.faults.scratch import PATIENCE_S, Scratch
from tests.startup.cli.launched import Result

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def running() -> Iterator[Scratch]:
    """Base, Top that needs it, Aside that nobody needs, on two machines."""
    with Scratch(machines=("m1", "m2")) as fleet:
        fleet.write({"Base": {}, "Top": {"machine": "m2", "dependencies": ["Base"]}, "Aside": {"group": "more"}})
        fleet.up()
        yield fleet


#: Command line -> exit code, and a key of its document. In an order in which each leaves what the next needs.
COMMANDS: tuple[tuple[str, int, str], ...] = (
    ("up fleet.yaml", 0, "ready"),
    ("up fleet.yaml Top", 0, "agents"),
    ("up fleet.yaml --no-wait", 0, "revision"),
    ("status", 0, "agents"),
    ("status Top", 0, "agents"),
    ("logs", 0, "lines"),
    ("logs Top -n 3", 0, "lines"),
    ("errors", 0, "errors"),
    ("errors --agent Top --severity error --all", 0, "errors"),
    ("errors show abcdef", 2, "error"),
    ("errors show 1", 2, "error"),
    ("errors --agent Nobody", 2, "error"),
    ("errors Top", 2, "error"),
    ("events", 0, "topics"),
    ("events a..b", 2, "error"),
    ("call Top echo text=hello", 0, "result"),
    ("call Top fail", 1, "error"),
    ("call Nobody echo", 1, "error"),
    ("describe Top", 0, "result"),
    ("stop Aside", 0, "stopped"),
    ("start Aside", 0, "agents"),
    ("restart Aside", 0, "agents"),
    ("restart Aside --no-wait", 0, "restarted"),
    ("start Aside", 0, "agents"),
    ("timeline", 0, "agents"),
    ("validate fleet.yaml", 0, "problems"),
    ("validate missing.yaml", 2, "problems"),
    ("plan fleet.yaml", 0, "levels"),
    ("schema", 0, "properties"),
    ("node status", 0, "nodes"),
    ("node unit --machine m1", 0, "unit"),
    ("doctor", 0, "checks"),
    ("status --cluster elsewhere", 4, "error"),
    ("status Nobody", 2, "error"),
)


@pytest.mark.parametrize(("words", "code", "key"), COMMANDS, ids=[words for words, _, _ in COMMANDS])
def test_json_is_one_document(running: Scratch, words: str, code: int, key: str) -> None:
    options = ["--cluster", "c"] if words.startswith("node unit") else []
    result = running.run(*words.split(), *options, "--json")
    assert result.code == code or (words == "doctor" and result.code == 1), result.err  # this machine may be unfit
    assert key in document(result), result.out


def document(result: Result) -> Any:
    return json.loads(result.out)  # raises when anything stands behind it


def test_exit_code_0_is_done(running: Scratch) -> None:
    assert running.run("call", "Base", "echo", "text=x").code == 0


def test_exit_code_1_is_failed_or_done_in_part(fleet: Scratch) -> None:
    fleet.write({"Plain": {}, "Broken": {"agent": "fleet_agents:Broken"}})
    assert fleet.run("up", "fleet.yaml").code == 1
    assert fleet.run("call", "Plain", "fail").code == 1
    assert fleet.run("start", "Broken").code == 1
    assert fleet.run("status").code == 0  # the question succeeded


def test_exit_code_2_is_bad_usage_or_configuration(running: Scratch) -> None:
    (running.folder / "bad.yaml").write_text("version: 1\ncluster: bad\nagent_groups: {core: {A: {porrt: 1}}}\n")
    for words in (
        "",
        "dance",
        "up bad.yaml",
        "up missing.yaml",
        "call Base echo text",
        "up --group",
        "stop",
        "run Nobody",
    ):
        assert running.run(*words.split()).code == 2, words


def test_exit_code_3_is_timed_out_and_the_nodes_go_on(fleet: Scratch) -> None:
    fleet.write({"Slow": {"agent": "fleet_agents:Slow", "config": {"until": str(fleet.folder / "go")}}})
    result = fleet.run("up", "fleet.yaml", "--timeout", "0.5", "--json")
    assert result.code == 3
    assert document(result)["ready"] == 0
    assert fleet.run("restart", "Slow", "--timeout", "0.2").code == 3
    (fleet.folder / "go").touch()
    fleet.wait_phase(Phase.READY, "Slow")


def test_exit_code_4_is_no_node(fleet: Scratch) -> None:
    for words in (
        "status",
        "logs",
        "events",
        "events -f",
        "call A b",
        "describe A",
        "stop A",
        "start A",
        "restart A",
        "timeline",
        "node status",
        "run A",
    ):
        result = fleet.run(*words.split(), "--json")
        assert (words, result.code) == (words, 4)
        assert document(result)["error"]["code"] == "NoNode"


def test_exit_code_130_is_interrupted(running: Scratch) -> None:
    process = running.popen("logs", "-f")
    assert process.stdout is not None
    assert process.stdout.readline()  # it has begun
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_no_command_ends_in_a_traceback_when_its_reader_has_gone(running: Scratch) -> None:
    result = running.execute(
        "bash", "-c", 'set -o pipefail; "$@" | true', "bash", sys.executable, "-m", "startup", "schema"
    )
    assert "Traceback" not in result.err


def test_agents_inherit_what_is_named_and_nothing_else(fleet: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.python(
        "inherits.py",
        """
        import os
        from agentkit import BaseAgent, rpc

        class Inherits(BaseAgent):
            @rpc
            async def environment(self) -> dict[str, str]:
                return dict(os.environ)

            @rpc
            async def secret(self) -> str:
                return self.secrets["TOKEN"]
        """,
    )
    (fleet.folder / "token").write_text("s3cret\n")
    monkeypatch.setenv("PASSED", "yes")
    monkeypatch.setenv("NOT_PASSED", "no")
    keys = {"env": {"OWN": "1"}, "pass_env": ["PASSED"], "secrets": {"TOKEN": {"file": str(fleet.folder / "token")}}}
    fleet.write({"A": {"agent": "inherits:Inherits", **keys}})
    fleet.up()
    environment = fleet.call("A", "environment")
    assert (environment["OWN"], environment["PASSED"], environment["AGENT_NAME"]) == ("1", "yes", "A")
    assert "NOT_PASSED" not in environment
    assert "PATH" in environment
    assert fleet.call("A", "secret") == "s3cret"
    assert "s3cret" not in json.dumps(environment)
    kept = b"".join(path.read_bytes() for path in fleet.place("m").state.rglob("*") if path.is_file())
    assert b"s3cret" not in kept
