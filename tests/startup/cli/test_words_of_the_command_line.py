"""How commands read what was typed, without any node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentkit.errors import BadRequest, ConfigError, HandlerError
from startup.cli import node
from startup.cli.call import failed, read_arguments
from startup.cli.common import choose, duration_s
from startup.cli.describe import description_lines
from startup.cli.main import COMMANDS, main
from tests.startup.view.fleets import an_id

IDS = [an_id(text) for text in ("main_pc/Database", "main_pc/Worker", "main_pc/Worker#1", "pc2/Worker", "pc2/Reporter")]


def test_values_are_json_where_they_are_json_and_text_otherwise() -> None:
    words = [
        "n=3",
        "f=1.5",
        "flag=true",
        "none=null",
        "text=two words",
        'quoted="3"',
        "list=[1, 2]",
        "eq=a=b",
        "empty=",
    ]
    assert read_arguments(words, None) == {
        "n": 3, "f": 1.5, "flag": True, "none": None, "text": "two words", "quoted": "3", "list": [1, 2], "eq": "a=b", "empty": "",
    }  # fmt: skip


def test_pairs_come_on_top_of_the_payload() -> None:
    assert read_arguments(["a=2"], '{"a": 1, "b": {"c": 3}}') == {"a": 2, "b": {"c": 3}}


@pytest.mark.parametrize(("words", "payload"), [(["novalue"], None), (["=3"], None), ([], "[1]"), ([], "{broken")])
def test_what_is_no_argument_is_refused_with_an_example(words: list[str], payload: str | None) -> None:
    with pytest.raises(ConfigError, match=r"want (key=value|a JSON object)"):
        read_arguments(words, payload)


def test_names_mean_agents_by_the_one_rule() -> None:
    assert list(map(str, choose(["Database", "main_pc/Worker", "pc2/Worker"], IDS))) == [
        "main_pc/Database", "main_pc/Worker", "main_pc/Worker#1", "pc2/Worker",
    ]  # fmt: skip
    assert list(map(str, choose(["main_pc/Worker#1", "main_pc/Worker"], IDS))) == ["main_pc/Worker#1", "main_pc/Worker"]


def test_an_unknown_name_gets_the_nearest_known_and_an_ambiguous_one_its_choices() -> None:
    with pytest.raises(ConfigError, match="did you mean `Reporter`"):
        choose(["Repporter"], IDS)
    with pytest.raises(ConfigError, match="write main_pc/Worker or pc2/Worker"):
        choose(["Worker"], IDS)


def test_a_failed_call_is_told_on_stderr_or_as_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    exc = BadRequest("text: wanted a string", details={"argument": "text"})
    assert failed(exc, as_json=False) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == 'agentkit: bad_request: text: wanted a string\n  {"argument": "text"}\n'
    assert failed(HandlerError("boom", details={"type": "ValueError", "traceback": "Traceback ..."}), as_json=True) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["message"], error["details"]["type"]) == ("handler_error", "boom", "ValueError")


def test_a_description_shows_signatures_options_and_documentation() -> None:
    arguments = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "kind": {"enum": ["a", "b"]},
            "extra": {"type": "object", "additionalProperties": {"type": "number"}},
        },
        "required": ["text"],
    }
    told = {
        "name": "S", "instance": "S", "machine": "pc2", "type": "agents.s.S", "doc": "Sums up.",
        "methods": {
            "sum_up": {
                "doc": "One text.\n\nIn short.", "arguments": arguments, "result": {"$ref": "#/$defs/Summary"},
                "timeout_s": 30.0, "idempotent": True, "concurrency": None,
            },
            "clear": {"doc": "", "arguments": {"type": "object"}, "result": {}, "timeout_s": None, "idempotent": False, "concurrency": 1},
        },
    }  # fmt: skip
    assert list(description_lines(told)) == [
        "pc2/S: agents.s.S",
        "  Sums up.",
        "",
        "sum_up(text: str, limit: int | None = ..., tags: list[str] = ..., kind: 'a' | 'b' = ..., extra: dict[float] = ...) -> Summary",
        "    timeout 30 s, idempotent",
        "    One text.",
        "",
        "    In short.",
        "",
        "clear()",
        "    concurrency 1",
    ]


def test_every_command_has_a_manual_page(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        page = capsys.readouterr().out
        assert "--json" in page
        assert "--cluster" in page


def test_options_may_stand_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("startup.cli.call.run", lambda arguments: seen.append(arguments) or 0)
    assert main(["call", "A", "m", "--timeout", "2", "x=1"]) == 0
    assert (seen[0].values, seen[0].timeout) == (["x=1"], 2.0)


@pytest.mark.parametrize(
    ("text", "wanted_s"),
    [("2", 2.0), ("0.5", 0.5), ("30s", 30.0), ("500ms", 0.5), ("1.5m", 90.0), ("1h", 3600.0), ("0", 0.0)],
)
def test_a_duration_has_a_unit_or_is_seconds(text: str, wanted_s: float) -> None:
    assert duration_s(text) == wanted_s


@pytest.mark.parametrize("text", ["", "s", "-1", "1x", "nan", "inf", "1e3", "1.2.3", "5 5"])
@pytest.mark.parametrize("command", ["up", "down", "call A m", "restart A"])
def test_what_is_no_duration_is_refused_with_an_example(
    text: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), f"--timeout={text}"]) == 2
    assert "no duration such as 30s" in capsys.readouterr().err


def test_a_unit_starts_the_supervised_node_with_its_places_and_survives_odd_paths() -> None:
    text = node.unit(
        "reference", "pc2",
        python="/opt/my agents/bin/python", environ={"PATH": "/usr/bin"},
        run=Path("/run/user/1000/agentkit"), state=Path("/srv/100%/state"), folder=Path("/srv/fleet"),
    )  # fmt: skip
    lines = text.splitlines()
    for line in (
        "Type=notify", "NotifyAccess=all", "KillMode=process", "Restart=on-failure", "WorkingDirectory=/srv/fleet",
        'ExecStart="/opt/my agents/bin/python" -m startup node run --supervised --cluster reference --machine pc2',
        "Environment=AGENTKIT_RUN_DIR=/run/user/1000/agentkit", "Environment=AGENTKIT_STATE_DIR=/srv/100%%/state",
    ):  # fmt: skip
        assert line in lines
