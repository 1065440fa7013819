"""Each check of `doctor`, shown failing (or warning, where the fleet would still run)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from startup.cli import facts, main
from startup.cli.doctor import finding_lines
from startup.cli.fitness import (
    CHECKS,
    Check,
    Facts,
    Finding,
    backlog,
    clock,
    curve,
    datagrams,
    disk,
    examine,
    kernel,
    keys,
    leftovers,
    libzmq_version,
    limits,
    memory,
    modules,
    names,
    open_files,
    overcommit,
    ports,
    python_version,
    run_dir_owner,
    run_dir_path,
    shared_memory,
    state_dir,
    swap,
    tasks,
    timer,
    user,
    uvloop,
)  # fmt: skip

FIT = Facts(
    agents=84,
    ports=frozenset({7200, 7201, 7210}),
    python=(3, 11, 7),
    modules={"zmq": "27.1", "uvloop": "0.21"},
    libzmq=(4, 3, 5),
    has_curve=True,
    kernel="6.18.0",
    has_pidfd=True,
    has_close_range=True,
    somaxconn=4096,
    files_soft=1024,
    files_hard=524288,
    tasks_limit=32768,
    tasks_now=300,
    memory_available_mb=8000,
    swap_used_mb=0,
    overcommit=0,
    shm_free_mb=4000,
    limits="cgroup v2",
    run_dir="/run/user/1000/agentkit/reference/main_pc",
    run_dir_owner=1000,
    run_dir_mode=0o700,
    state_dir="/home/ops/.local/state/agentkit/reference/main_pc",
    state_free_mb=50_000,
    uid=1000,
    ephemeral_ports=(32768, 60999),
    datagram_queue=10,
    clock_synchronized=True,
    clock_resolution_s=1e-9,
    hostname="pc",
    resolve_s={"localhost": 0.001, "pc": 0.002},
)

FAILING: list[tuple[Check, dict[str, Any], str, str]] = [
    (python_version, {"python": (3, 10, 12)}, "fail", "3.10.12"),
    (modules, {"modules": {"zmq": "27.1", "httptools": ""}}, "fail", "httptools"),
    (uvloop, {"modules": {"uvloop": ""}}, "fail", "does not import"),
    (libzmq_version, {"libzmq": (4, 2, 5)}, "fail", "4.2.5"),
    (libzmq_version, {"libzmq": None}, "fail", "does not import"),
    (curve, {"has_curve": False}, "fail", "missing"),
    (kernel, {"has_pidfd": False}, "fail", "pidfd_open"),
    (kernel, {"has_close_range": False}, "warn", "close_range"),
    (backlog, {"somaxconn": 128}, "fail", "128"),
    (datagrams, {"datagram_queue": 2}, "fail", "2"),
    (open_files, {"files_hard": 512}, "fail", "hard 512"),
    (tasks, {"tasks_limit": 1000, "tasks_now": 300}, "fail", "700 left of 1000"),
    (memory, {"memory_available_mb": 300}, "fail", "300 MB"),
    (swap, {"swap_used_mb": 2000}, "warn", "2000 MB"),
    (overcommit, {"overcommit": 2}, "fail", "2"),
    (shared_memory, {"shm_free_mb": None}, "warn", "none"),
    (limits, {"limits": "rlimits", "limits_why": "cgroup v2: not delegated"}, "warn", "rlimits (cgroup v2: not"),
    (run_dir_path, {"run_dir": "/tmp/" + "x" * 100}, "fail", "117 bytes"),
    (run_dir_owner, {"run_dir_owner": 0}, "fail", "owned by uid 0"),
    (run_dir_owner, {"run_dir_mode": 0o755}, "fail", "mode 0755"),
    (run_dir_owner, {"run_dir_owner": None, "run_dir_mode": None, "run_dir_writable": False}, "fail", "not there yet"),
    (state_dir, {"state_dir_writable": False}, "fail", "not writable"),
    (disk, {"state_free_mb": 100}, "fail", "100 MB"),
    (disk, {"state_free_mb": 1000}, "warn", "1000 MB"),
    (ports, {"ephemeral_ports": (7000, 60999)}, "fail", "3 of the fleet's ports are in it, from 7200 on"),
    (names, {"resolve_s": {"localhost": 0.001, "pc": None}}, "fail", "pc fails"),
    (names, {"resolve_s": {"localhost": 5.0}}, "fail", "localhost takes 5.0 s"),
    (clock, {"clock_synchronized": False}, "warn", "not synchronised"),
    (timer, {"clock_resolution_s": 0.004}, "fail", "4000000 ns"),
    (keys, {"open_key_files": ("/home/ops/.config/agentkit/keys/pc.key_secret",)}, "fail", "others may read"),
    (user, {"uid": 0}, "warn", "uid 0"),
    (leftovers, {"stale": ("reference/pc2",)}, "warn", "reference/pc2"),
]


@pytest.mark.parametrize(
    ("check", "facts", "verdict", "value"), FAILING, ids=[f"{c.__name__}-{v}" for c, _, _, v in FAILING]
)
def test_a_check_says_what_is_wrong_and_how_to_mend_it(
    check: Check, facts: dict[str, Any], verdict: str, value: str
) -> None:
    finding = check(replace(FIT, **facts))
    assert finding.verdict == verdict
    assert value in finding.value
    assert finding.need
    assert finding.fix


def test_every_check_passes_on_a_fit_machine_and_needs_no_fix() -> None:
    findings = examine(FIT)
    assert [finding.name for finding in findings if finding.verdict != "ok" or finding.fix] == []


def test_every_check_is_shown_failing_and_has_a_name_of_its_own() -> None:
    assert {check for check, *_ in FAILING} == set(CHECKS)
    names = [finding.name for finding in examine(FIT)]
    assert len(set(names)) == len(names) >= 12


def test_ports_that_the_kernel_keeps_free_may_be_in_the_ephemeral_range() -> None:
    busy = replace(FIT, ephemeral_ports=(7000, 60999))
    assert "ip_local_reserved_ports=7200-7201,7210" in ports(busy).fix
    assert ports(replace(busy, reserved_ports=frozenset({7200, 7201, 7210}))).verdict == "ok"


def test_findings_are_shown_with_need_and_fix_below_those_that_are_not_ok() -> None:
    shown = "\n".join(finding_lines([backlog(FIT), backlog(replace(FIT, somaxconn=128))], width=100))
    assert shown == (
        "ok    somaxconn  4096 (need >= 4096)\n"
        "fail  somaxconn  128\n"
        "      need: >= 4096\n"
        "      fix:  sysctl -w net.core.somaxconn=4096\n"
        "\n"
        "2 checks: 1 failed, 0 warnings"
    )


@pytest.mark.process
def test_the_facts_of_this_machine_can_be_gathered(tmp_path: Any) -> None:
    environ = {"AGENTKIT_RUN_DIR": str(tmp_path / "run"), "AGENTKIT_STATE_DIR": str(tmp_path / "state")}
    found = facts.gather("c", "m", agents=4, ports=[7200], environ=environ)
    assert found.modules["zmq"]
    assert found.libzmq is not None
    assert found.python >= (3, 11, 0)
    assert found.run_dir == str(tmp_path / "run/c/m")
    assert found.run_dir_owner is None
    assert found.state_dir_writable
    assert found.memory_available_mb > 0


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_exits_with_1_when_a_check_fails(
    verdict: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("startup.cli.facts.gather", lambda *args, **named: FIT)
    finding = Finding(name="it", verdict=verdict, value="1", need="2", fix="" if verdict == "ok" else "do it")
    monkeypatch.setattr("startup.cli.doctor.examine", lambda facts: [finding])
    assert main.main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["fit"] == (code == 0)
    assert told["checks"][0]["verdict"] == verdict
