from __future__ import annotations

import ast
from pathlib import Path

import pytest

import agentkit

AGENTS = sorted((Path(__file__).resolve().parents[2] / "agents").glob("*.py"))


@pytest.mark.parametrize("file", AGENTS, ids=lambda file: file.stem)
def test_an_agent_that_ships_uses_only_what_is_public(file: Path) -> None:
    """They are models of how to write one: what they need must be there for everybody."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith(("agentkit.", "startup"))]
        elif (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.startswith(("agentkit", "startup", "agents"))
        ):
            assert node.module == "agentkit", node.module
            assert {alias.name for alias in node.names} <= set(agentkit.__all__)
