from __future__ import annotations

import json

import pytest

from startup.cli.main import main


def test_the_schema_is_json_with_a_description_for_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    for name, definition in {"file": schema, **schema["$defs"]}.items():
        for key, facts in definition.get("properties", {}).items():
            assert facts.get("description"), f"{name}.{key}"
    assert schema["additionalProperties"] is False
