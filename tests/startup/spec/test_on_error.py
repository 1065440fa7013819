"""`on_error`: one rule or a list, of an agent or of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from startup.spec.fleet import ErrorRule
from tests.startup.spec.projects import agents, loaded


def rules(tmp_path: Path, text: str, settings: str = "") -> tuple[ErrorRule, ...]:
    found = loaded(tmp_path, settings + agents(f"A: {{agent: 'm:C', {text}}}"))
    assert not [problem for problem in found.problems if problem.severity == "error"]
    assert found.fleet is not None
    return found.fleet.agents[0].on_error


def test_one_rule_stands_without_a_list_and_has_defaults(tmp_path: Path) -> None:
    assert rules(tmp_path, "on_error: {do: restart}") == (ErrorRule(do="restart", severity="critical"),)


def test_several_rules_keep_their_order(tmp_path: Path) -> None:
    text = (
        "on_error: [{severity: error, do: quarantine, after: 5, within: 2m}, {severity: warning, do: webhook, "
        "url: 'https://host:8443/hook?token=x'}]"
    )
    assert rules(tmp_path, text) == (
        ErrorRule(do="quarantine", severity="error", after=5, within_s=120.0),
        ErrorRule(do="webhook", severity="warning", url="https://host:8443/hook?token=x"),
    )


def test_defaults_are_for_all_and_an_empty_list_is_for_none(tmp_path: Path) -> None:
    settings = "defaults: {on_error: {do: restart}}\n"
    assert len(rules(tmp_path, "port: 10100", settings)) == 1
    assert rules(tmp_path, "on_error: []", settings) == ()


def test_a_rule_is_no_reason_to_restart_an_agent(tmp_path: Path) -> None:
    def digest(text: str) -> str:
        found = loaded(tmp_path, agents(f"A: {{agent: 'm:C', port: 10100, {text}}}"))
        assert found.fleet is not None
        return found.fleet.agents[0].digest()

    assert digest("on_error: {do: restart}") == digest("required: true")


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("{do: restrat}", "'restart', 'quarantine' or 'webhook'"),
        ("{severity: error}", "do"),
        ("{do: restart, severty: error}", "severity"),
        ("[{do: restart, aftr: 5}]", "after"),
        ("{do: restart, severity: fatal}", "'critical'"),
        ("{do: restart, after: 0}", "at least 1"),
        ("{do: restart, within: 10}", "10s"),
        ("{do: restart, within: 0}", "more than 0"),
        ("{do: webhook}", "`url` with `do: webhook`"),
        ("{do: restart, url: 'http://host/'}", "`url` with `do: webhook`"),
        ("{do: webhook, url: 'ftp://host/'}", "http:// or https://"),
        ("{do: webhook, url: 'http:///path'}", "http:// or https://"),
        ("{do: webhook, url: 'http://host:99999/'}", "http:// or https://"),
        ("{do: webhook, url: 'http://a b/'}", "http:// or https://"),
        ("restart", "a mapping"),
    ],
)
def test_a_wrong_rule_is_refused_with_what_is_wanted(tmp_path: Path, rule: str, told: str) -> None:
    found = loaded(tmp_path, agents(f"A: {{agent: 'm:C', on_error: {rule}}}"))
    errors = [problem for problem in found.problems if problem.severity == "error"]
    assert len(errors) == 1
    assert "on_error" in errors[0].at
    assert told in f"{errors[0].at} {errors[0].want} {errors[0].fix}"
