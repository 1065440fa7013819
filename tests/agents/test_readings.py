from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agents.system_monitor import Reading, sample_between, spread, take_reading

BEFORE = Reading(
    at=datetime(2030, 1, 1, tzinfo=UTC),
    monotonic_s=100.0,
    cpu_s=1000.0,
    cpu_idle_s=900.0,
    memory_used_bytes=1024**3,
    memory_total_bytes=4 * 1024**3,
    load_1m=0.5,
    disk_percent={"/": 40.0},
    network_in_bytes=10_000,
    network_out_bytes=20_000,
)
AFTER = replace(
    BEFORE,
    at=BEFORE.at + timedelta(seconds=10),
    monotonic_s=110.0,
    cpu_s=1020.0,
    cpu_idle_s=915.0,
    network_in_bytes=10_000 + 102_400,
    network_out_bytes=20_000 + 10_240,
)


def test_two_readings_make_percentages_and_rates() -> None:
    sample = sample_between(BEFORE, AFTER)
    assert sample.cpu_percent == 25.0
    assert (sample.memory_percent, sample.memory_used_mb) == (25.0, 1024.0)
    assert (sample.network_in_kb_s, sample.network_out_kb_s) == (10.0, 1.0)
    assert (sample.at, sample.disk_percent, sample.load_1m) == (AFTER.at, {"/": 40.0}, 0.5)


def test_two_readings_at_the_same_moment_show_an_idle_machine() -> None:
    assert sample_between(BEFORE, BEFORE).cpu_percent == 0.0


def test_a_network_card_that_went_away_makes_no_negative_rate() -> None:
    sample = sample_between(BEFORE, replace(AFTER, network_in_bytes=0, network_out_bytes=0))
    assert (sample.network_in_kb_s, sample.network_out_kb_s) == (0.0, 0.0)


def test_counters_that_run_backwards_stay_within_0_and_100_percent() -> None:
    assert sample_between(BEFORE, replace(AFTER, cpu_idle_s=890.0)).cpu_percent == 100.0
    assert sample_between(BEFORE, replace(AFTER, cpu_idle_s=990.0)).cpu_percent == 0.0


def test_spread_of_a_window() -> None:
    wide = spread([float(n) for n in range(100, 0, -1)])
    assert (wide.low, wide.mean, wide.p95, wide.high) == (1.0, 50.5, 96.0, 100.0)
    assert spread([3.0]).p95 == 3.0


def test_this_machine_can_be_read() -> None:
    reading = take_reading([Path("/")])
    assert 0 < reading.memory_used_bytes < reading.memory_total_bytes
    assert reading.cpu_idle_s <= reading.cpu_s
    assert 0 <= reading.disk_percent["/"] <= 100
