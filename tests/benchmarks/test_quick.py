from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.measured import unmeasured

pytestmark = [pytest.mark.process, pytest.mark.slow]


def run(script: str, *arguments: str) -> dict[str, list[dict[str, object]]]:
    """Title of each table -> its rows."""
    command = [sys.executable, BENCHMARKS / script, "--quick", "--json", *arguments]
    env = unmeasured(os.environ) | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {table["title"]: table["rows"] for table in json.loads(done.stdout)["tables"]}


def test_the_short_form_of_bench_rpc_fills_every_table() -> None:
    tables = run("bench_rpc.py", "--only", "agentkit")
    assert len(tables) == 5
    for title, rows in tables.items():
        ours = [row for row in rows if "layer" in title or str(row["contender"]).startswith("agentkit")]
        assert ours, title
        assert all(isinstance(value, str) or value is not None for row in ours for value in row.values())
