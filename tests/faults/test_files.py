"""Files that can't be started: `up` says what is wrong and where, exits with 2, and starts nothing."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from tests.faults.scratch import Scratch
from tests.startup.cli.launched import free_port

pytestmark = [pytest.mark.process, pytest.mark.slow]

HEAD = """\
version: 1
cluster: c
port_ranges: {core: 1024-65535}
agent_groups:
  core:
"""


def refused(fleet: Scratch, *agents: str) -> str:
    """What `up` says of a file with these agents, one line each; the sentence that is about the one error in it."""
    fleet.text(HEAD + "".join(f"    {line}\n" for line in agents))
    result = fleet.run("up", "fleet.yaml", "--json")
    assert result.code == 2, result.err
    problems = [problem for problem in result.json["error"]["problems"] if problem["severity"] == "error"]
    assert len(problems) == 1, problems
    (problem,) = problems
    assert not fleet.run_root.exists() or not list(fleet.run_root.glob("*/*/node.sock"))
    for said in (problem["place"], problem["found"]):
        assert said in " ".join(result.err.split()), result.err
    return f"{problem['place']} {problem['at']}: {problem['found']}; want {problem['want']}; fix {problem['fix']}"


def plain(name: str, more: str = "") -> str:
    return f"{name}: {{agent: 'fleet_agents:Plain', port: {free_port()}, health_check_port: {free_port()}{more}}}"


def test_a_cycle_is_refused_with_its_path(fleet: Scratch) -> None:
    said = refused(
        fleet,
        plain("A", ", dependencies: [C]"), plain("B", ", dependencies: [A]"), plain("C", ", dependencies: [B]"), plain("D"),
    )  # fmt: skip
    assert "fleet.yaml:7" in said
    assert "A -> C -> B -> A" in said
    assert "remove `A` from B's dependencies" in said


def test_a_dependency_that_does_not_exist_is_refused_with_the_nearest_name(fleet: Scratch) -> None:
    said = refused(fleet, plain("Summarizer"), plain("B", ", dependencies: [Sumarizer]"))
    assert "Sumarizer" in said
    assert "`Summarizer`" in said
    assert "fleet.yaml:7" in said


def test_two_agents_on_one_port_are_refused_by_name(fleet: Scratch) -> None:
    port = free_port()
    lines = [
        f"{name}: {{agent: 'fleet_agents:Plain', port: {port}, health_check_port: {free_port()}}}" for name in "AB"
    ]
    said = refused(fleet, *lines)
    assert str(port) in said
    assert "A" in said
    assert "B" in said


def test_an_unknown_key_is_refused_with_the_nearest_one(fleet: Scratch) -> None:
    said = refused(fleet, plain("A", ", dependancies: []"))
    assert "dependancies" in said
    assert "`dependencies`" in said
    assert "fleet.yaml:6" in said


def test_a_key_written_twice_is_refused(fleet: Scratch) -> None:
    said = refused(fleet, plain("A"), plain("B"), plain("A"))
    assert "A" in said
    assert "fleet.yaml:8" in said
    assert "6" in said.partition(":")[2]  # where the other one stands


def test_a_script_that_does_not_compile_is_refused_with_its_line(fleet: Scratch) -> None:
    fleet.python("broken.py", "from agentkit import BaseAgent\n\ndef f(:\n    pass\n")
    said = refused(fleet, f"A: {{script_path: broken.py, port: {free_port()}, health_check_port: {free_port()}}}")
    assert "broken.py" in said
    assert "3" in said


def test_a_class_that_is_no_agent_is_refused(fleet: Scratch) -> None:
    fleet.python("thing.py", "class Thing:\n    pass\n")
    said = refused(fleet, f"A: {{agent: 'thing:Thing', port: {free_port()}, health_check_port: {free_port()}}}")
    assert "Thing in thing is no agent" in said
    assert "a subclass of agentkit.BaseAgent" in said


def test_a_config_that_the_agents_own_model_rejects_is_refused(fleet: Scratch) -> None:
    said = refused(fleet, plain("A", ", config: {words: [1, 2]}"))
    assert "config.words" in said
    assert "fleet.yaml:6" in said


def test_a_port_that_a_stranger_has_is_refused_with_the_strangers_name(fleet: Scratch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        said = refused(fleet, f"A: {{agent: 'fleet_agents:Plain', port: {port}, health_check_port: {free_port()}}}")
    assert str(port) in said
    assert f"pid {os.getpid()}" in said
    assert os.path.basename(sys.executable) in said or "pytest" in said


def test_every_problem_is_told_in_one_run(fleet: Scratch) -> None:
    fleet.text(
        HEAD + "    A: {agent: 'fleet_agents:Plain', porrt: 1}\n    B: {agent: 'nowhere:X', dependencies: [Nobody]}\n"
    )
    result = fleet.run("up", "fleet.yaml", "--json")
    assert result.code == 2
    checks = {problem["check"] for problem in result.json["error"]["problems"]}
    assert len(checks) >= 2, checks
    assert result.err.count("fleet.yaml:") >= 2
