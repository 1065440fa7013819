"""docs/must-survive.md names tests: each is there, once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS.parent / "docs" / "must-survive.md"
NAMED = re.findall(r"`([a-z0-9_/]+\.py)::(\w+)`", TABLE.read_text())


def names_in(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")}


def test_every_test_that_the_table_names_exists() -> None:
    missing = [f"{file}::{name}" for file, name in NAMED if name not in names_in(TESTS / file)]
    assert not missing


def test_no_item_of_the_table_is_listed_twice() -> None:
    assert len(NAMED) == len(set(NAMED))
    rows = [line for line in TABLE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| item")]
    assert len(rows) == len(NAMED)
