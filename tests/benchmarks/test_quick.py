from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.consul.fixtures import needs
from tests.hosts.machines import refusal
from tests.measured import unmeasured

pytestmark = [pytest.mark.process, pytest.mark.slow]


def run(script: str, *arguments: str) -> dict[str, list[dict[str, object]]]:
    """Title of each table -> its rows."""
    command = [sys.executable, BENCHMARKS / script, "--quick", "--json", *arguments]
    env = unmeasured(os.environ) | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {table["title"]: table["rows"] for table in json.loads(done.stdout)["tables"]}


@pytest.mark.soak(only=True)
def test_the_short_form_of_bench_rpc_fills_every_table() -> None:
    tables = run("bench_rpc.py", "--only", "agentkit")
    assert len(tables) == 5
    for title, rows in tables.items():
        ours = [row for row in rows if "layer" in title or str(row["contender"]).startswith("agentkit")]
        assert ours, title
        assert all(isinstance(value, str) or value is not None for row in ours for value in row.values())


@pytest.mark.soak(only=True)
def test_the_short_form_of_bench_overload_fills_every_table() -> None:
    loads, claims = run("bench_overload.py").values()
    assert [row["asked for /s"] for row in loads] == [1000, 2000, 2500, 10_000]
    assert all(isinstance(row["done /s"], float) and row["done /s"] > 0 for row in loads)
    assert loads[-1]["rejected /s"] > 0
    assert loads[-1]["other errors"] == "none", "each call ended in time, answered or refused"
    assert [row["wanted"] for row in claims] == ["0.9 at least", claims[1]["wanted"], "100 at most"]


def test_the_short_form_of_bench_events_delivers_everything() -> None:
    (rows,) = run("bench_events.py", "--only", "agentkit").values()
    assert [row["contender"] for row in rows] == ["pyzmq PUSH/PUB/SUB", "agentkit"]
    assert all(row["lost"] == 0 for row in rows)
    assert all(row["delivered/s"] > 0 for row in rows)  # type: ignore[operator]


def test_the_short_form_of_bench_stream_fills_every_table() -> None:
    tables = run("bench_stream.py", "--only", "agentkit")
    assert len(tables) == 2
    assert all(row["contender"] == "agentkit" and None not in row.values() for rows in tables.values() for row in rows)
    assert all(rows for rows in tables.values())


def test_the_short_form_of_bench_roll_loses_no_call() -> None:
    (rows,) = run("bench_roll.py").values()
    assert [row["way"] for row in rows] == ["overlap", "handover", "SIGTERM"]
    for row in rows:
        assert (row["failed"], row["run twice"]) == (0, 0), row
        assert isinstance(row["calls"], int)
        assert row["calls"] > 100


@pytest.mark.soak(only=True)
def test_the_short_form_of_bench_hibernate_gives_the_model_back() -> None:
    (rows,) = run("bench_hibernate.py", "--only", "hooks").values()
    hooks, reading = rows
    assert hooks["agent"] == "hooks"
    assert isinstance(hooks["awake MB"], float)
    assert isinstance(hooks["asleep MB"], float)
    assert hooks["awake MB"] > hooks["asleep MB"] + 40
    assert None not in hooks.values()
    assert reading["agent"] == "reading the file"


def test_the_short_form_of_bench_hibernate_loses_no_call() -> None:
    (rows,) = run("bench_hibernate.py", "--only", "calls").values()
    (row,) = rows
    assert (row["lost"], row["run twice"], row["restarts"]) == (0, 0, 0), row
    assert isinstance(row["wakes"], int)
    assert row["wakes"] > 10


@pytest.mark.soak(only=True)
def test_the_short_form_of_bench_supervise_fills_a_row() -> None:
    (rows,) = run("bench_supervise.py", "--only", "agentkit").values()
    (row,) = rows
    assert (row["supervisor"], row["kills"]) == ("agentkit", 10)
    assert isinstance(row["p50 ms"], float)
    assert row["p50 ms"] > 0


def test_the_short_form_of_bench_shm_hands_every_array_over() -> None:
    (rows,) = run("bench_shm.py").values()
    assert [row["contender"] for row in rows] == ["TCP", "agentkit", "agentkit, Shared", "agentkit, Shared again"]
    assert all(isinstance(row["GB/s"], float) and row["GB/s"] > 0 for row in rows)


@pytest.mark.soak(only=True)
def test_the_short_form_of_bench_discovery_sees_every_life() -> None:
    needs("consul")
    (rows,) = run("bench_discovery.py", "--only", "consul").values()
    assert [(row["way"], row["lives"]) for row in rows] == [("consul", 80)]
    assert all(row["p99"] > 0 for row in rows)  # type: ignore[operator]


@pytest.mark.skipif(bool(refusal()), reason=refusal())
def test_the_short_form_of_bench_partition_measures_edges_between_machines() -> None:
    (rows,) = run("bench_partition.py", "--only", "edge").values()
    (row,) = rows
    assert row["starts"] == 5
    assert all(isinstance(row[name], float) and row[name] > 0 for name in ("local", "remote"))
