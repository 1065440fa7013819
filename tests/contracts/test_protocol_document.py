"""docs/protocol.md says what the code does: its tables of kinds, codes and limits, and its examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

from agentkit.errors import BY_CODE
from agentkit.wire.envelope import Kind, Limits

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/protocol.md").read_text()
VECTORS = json.loads((ROOT / "tests/agentkit/wire/vectors/ak1.json").read_text())


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_kind_is_in_the_table_with_its_number() -> None:
    told: dict[str, int] = {}
    for names, numbers in re.findall(r"^\| ([A-Z, ]+) \| ([\d, ]+) \|", section("Messages"), re.MULTILINE):
        told |= dict(zip(names.split(", "), map(int, numbers.split(", ")), strict=True))
    assert told == {kind.name: kind.value for kind in Kind}


def test_every_code_is_in_the_table_and_told_right_about_trying_again() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", section("Codes"), re.MULTILINE))
    assert told.keys() == BY_CODE.keys()
    for code, says in told.items():
        assert says.startswith("yes") == BY_CODE[code]().retry_safe, code


def test_the_limits_are_those_of_the_code() -> None:
    told = {name: int(value) for name, value in re.findall(r"^\| `(\w+)` \| (\d+) \|", section("Limits"), re.MULTILINE)}
    assert told == Limits()._asdict()


def test_the_bytes_of_the_example_are_those_of_the_vectors() -> None:
    example = TEXT.split("byte by byte\n")[1].split("```")[1]
    known = {vector["hex"] for vector in VECTORS["headers"] + VECTORS["bodies"]}
    for start in ("98 01", "96 03", "82 a5", "93 04"):
        bytes_ = example[example.index(start) :].split("\n         [")[0].split("[")[0].split("\nREPLY")[0]
        tokens = re.findall(r'"[^"]*"|[0-9a-f]+', bytes_)
        written = "".join(t[1:-1].encode().hex() if t.startswith('"') else t for t in tokens)
        assert written in known, start
