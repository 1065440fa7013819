from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.measured import unmeasured


@pytest.mark.process
def test_the_floor_forks_both_kinds_and_leaves_nothing(tmp_path: Path) -> None:
    env = unmeasured(os.environ) | {"PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, BENCHMARKS / "floor.py", "3", "2", tmp_path]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert list(measured) == ["floor", "bare agents"]
    for values in measured.values():
        assert len(values["seconds"]) == len(values["pss_mb"]) == 2
        assert min(values["seconds"]) > 0
