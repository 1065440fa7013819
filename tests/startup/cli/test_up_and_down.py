"""`up` and `down` with real nodes: how it ends, and what survives interruptions."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from agentkit.names import AgentId
from startup.cli.watch import Watch
from startup.control import UnixDoor
from startup.machines import orphans
from startup.machines.waits import connect_when_listening
from tests.startup.cli.launched import PATIENCE_S, Launched, free_port

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture
def fleet() -> Iterator[Launched]:
    with Launched() as launched:
        yield launched


def test_up_tells_how_long_it_took_the_path_and_how_to_go_on(fleet: Launched) -> None:
    fleet.write({"Base": {}, "Top": {"dependencies": ["Base"]}})
    result = fleet.run("up", "fleet.yaml")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("2 agents ready in ")
    assert lines[1].startswith("slowest path: Base ")
    assert "> Top " in lines[1]
    assert " call Top METHOD" in lines[2]  # behind the command as it was typed
    down = fleet.run("down")
    assert (down.code, down.out.startswith("c is down: 2 agents on 1 machine stopped in ")) == (0, True)
    assert orphans.processes_of(fleet.place("m")) == set()


def test_after_a_down_the_fleet_comes_up_again_on_its_old_state(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fleet.up()
    assert fleet.run("down").code == 0
    told = fleet.up()
    assert told["ready"] == 1


def test_the_document_of_up_counts_from_the_beginning_of_the_command(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    told = fleet.up()
    (agent,) = told["agents"]
    assert 0 < agent["forked_s"] < agent["ready_s"] <= told["elapsed_s"]
    assert (told["failed"], told["skipped"], told["degraded"]) == ([], [], [])


def test_what_fails_is_told_with_its_log_and_what_needs_it_is_skipped(fleet: Launched) -> None:
    fleet.write({"Broken": {"agent": "fleet_agents:Broken"}, "Needs": {"dependencies": ["Broken"]}, "Alone": {}})
    result = fleet.run("up", "fleet.yaml", "--json")
    assert result.code == 1
    told = result.json
    assert told["ready"] == 1
    (failed,) = told["failed"]
    assert failed["agent"] == "Broken"
    assert "model.bin is not there" in failed["reason"]
    assert any("FileNotFoundError" in line for line in failed["log_tail"])
    assert [(it["agent"], "Broken" in it["because"]) for it in told["skipped"]] == [("Needs", True)]


def test_an_optional_failure_degrades_only(fleet: Launched) -> None:
    fleet.write({"Broken": {"agent": "fleet_agents:Broken", "required": False}, "Alone": {}})
    result = fleet.run("up", "fleet.yaml")
    assert result.code == 0
    assert "failed (optional) m/Broken" in result.out


def test_every_problem_of_the_file_is_printed_and_nothing_starts(fleet: Launched) -> None:
    fleet.write({"A": {"dependencies": ["Nobody"], "porrt": 1}, "B": {"agent": "fleet_agents:Missing"}})
    result = fleet.run("up", "fleet.yaml", "--json")
    assert result.code == 2
    assert "porrt" in result.err
    assert "Nobody" in result.err
    assert len(result.json["error"]["problems"]) >= 2
    assert not list(fleet.run_root.glob("*/*/node.sock"))
    assert fleet.run("status").code == 4


def test_a_named_agent_brings_its_requirements_and_a_second_up_adds(fleet: Launched) -> None:
    fleet.write({"Base": {}, "Top": {"dependencies": ["Base"]}, "Other": {}, "Third": {}})
    assert [agent["name"] for agent in fleet.up("Top")["agents"]] == ["Base", "Top"]
    before = fleet.pids()
    assert before["Other"] is None
    assert [agent["name"] for agent in fleet.up("Other")["agents"]] == ["Other"]
    after = fleet.pids()
    assert (after["Top"], after["Third"]) == (before["Top"], None)
    assert after["Other"] is not None


def test_groups_and_exceptions_select(fleet: Launched) -> None:
    fleet.write(
        {
            "Base": {},
            "Top": {"dependencies": ["Base"], "group": "more"},
            "Last": {"dependencies": ["Top"], "group": "more"},
        }
    )
    assert [agent["name"] for agent in fleet.up("--group", "more", "--except", "Last")["agents"]] == ["Base", "Top"]


def test_a_wrong_name_is_told_before_there_is_a_node(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    result = fleet.run("up", "fleet.yaml", "Bsae")
    assert (result.code, "did you mean `Base`?" in result.err) == (2, True)
    assert fleet.run("node", "status").code == 4


def test_a_changed_file_restarts_what_changed_stops_what_is_gone_and_starts_what_is_new(fleet: Launched) -> None:
    ports = {
        name: {"port": free_port(), "health_check_port": free_port()} for name in ("Same", "Changed", "Gone", "New")
    }
    fleet.write({name: ports[name] for name in ("Same", "Changed", "Gone")})
    fleet.up()
    before = fleet.pids()
    fleet.write(
        {"Same": ports["Same"], "Changed": ports["Changed"] | {"config": {"words": "other"}}, "New": ports["New"]}
    )
    result = fleet.run("up", "fleet.yaml", "--json")
    assert result.code == 0, result.err
    for line in ("~ m/Changed  replaced", "+ m/New  added", "- m/Gone  removed, drained first", "1 agent unchanged"):
        assert f"  {line}" in result.err.splitlines()
    assert result.json["changes"]["added"] == ["m/New"]
    after = fleet.pids()
    assert after["Same"] == before["Same"]
    assert after["Changed"] != before["Changed"]
    assert after.get("Gone") is None


def test_an_up_that_takes_too_long_exits_with_3_and_the_nodes_carry_on(fleet: Launched) -> None:
    fleet.write({"Slow": slow(fleet)})
    result = fleet.run("up", "fleet.yaml", "--timeout", "2")
    assert result.code == 3
    (fleet.folder / "go").touch()
    assert fleet.run("up", "fleet.yaml").code == 0


def test_no_wait_returns_when_the_nodes_know(fleet: Launched) -> None:
    fleet.write({"Slow": slow(fleet)})
    result = fleet.run("up", "fleet.yaml", "--no-wait", "--json")
    assert (result.code, result.json["revision"]) == (0, 1)


def test_ctrl_c_detaches_and_the_nodes_carry_on(fleet: Launched) -> None:
    fleet.write(
        {
            "Base": {},
            "Slow": slow(fleet, "Base"),
        }
    )
    process = fleet.popen("up", "fleet.yaml")
    wait_until_forked(fleet, "Slow")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the nodes carry on; `agentkit down` stops them" in err
    (fleet.folder / "go").touch()
    assert fleet.run("up", "fleet.yaml").code == 0


def test_ctrl_c_before_the_nodes_are_started_starts_nothing(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    fifo = fleet.folder / "slow.yaml"
    os.mkfifo(fifo)  # reading it blocks until somebody writes
    process = fleet.popen("up", "slow.yaml", "--cluster", "c")
    writing = os.open(fifo, os.O_WRONLY)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    os.close(writing)
    assert process.returncode == 130
    assert "nothing was started" in err
    assert not list(fleet.run_root.glob("*/*/node.sock"))


def test_down_during_up_wins_and_up_exits_with_1(fleet: Launched) -> None:
    fleet.write(
        {
            "Base": {},
            "Slow": slow(fleet, "Base"),
        }
    )
    process = fleet.popen("up", "fleet.yaml")
    wait_until_forked(fleet, "Slow")
    down = fleet.run("down")
    _, err = process.communicate(timeout=20)
    assert down.code == 0
    assert process.returncode == 1
    assert "overtaken" in err


def test_two_ups_at_once_give_one_fleet(fleet: Launched) -> None:
    fleet.write({"Base": {}, "Top": {"dependencies": ["Base"]}})
    processes = [fleet.popen("up", "fleet.yaml") for _ in range(2)]
    ends = [(process.communicate(timeout=60), process.returncode) for process in processes]
    codes = sorted(code for _, code in ends)
    assert codes in ([0, 0], [0, 1]), ends
    assert all(code == 0 or "conflict" in err or "overtaken" in err for (_, err), code in ends)
    assert all(fleet.pids().values())


def test_two_clusters_run_side_by_side_and_must_be_named(fleet: Launched) -> None:
    fleet.write({"Base": {}})
    assert fleet.run("up", "fleet.yaml").code == 0
    fleet.write({"Base": {}}, file="d.yaml", cluster="d")
    second = fleet.run("up", "d.yaml")
    assert second.code == 0, second.err
    unclear = fleet.run("status")
    assert unclear.code == 4
    assert "c, d" in unclear.err
    assert fleet.run("status", "--cluster", "d", "--json").json["cluster"] == "d"
    assert fleet.run("down", "--cluster", "d").code == 0
    assert fleet.run("status", "--json").json["cluster"] == "c"


def test_down_of_nothing_says_so(fleet: Launched) -> None:
    result = fleet.run("down")
    assert (result.code, result.out) == (0, "nothing runs\n")
    assert fleet.run("down", "--cluster", "x", "--json").json["agents"] == 0


def test_down_ends_what_a_killed_node_and_zygote_have_left(fleet: Launched) -> None:
    fleet.write({"A": {}, "B": {}})
    fleet.up()
    agents = {pid for pid in fleet.pids().values() if pid}
    node = fleet.run("node", "status", "--json").json["nodes"][0]["node"]
    for pid in (node["zygote_pid"], node["pid"]):
        os.kill(pid, signal.SIGKILL)
    assert orphans.wait_gone([node["pid"], node["zygote_pid"]], 5) == set()
    assert orphans.processes_of(fleet.place("m")) >= agents
    result = fleet.run("down", "--json")
    assert result.code == 0, result.err
    assert set(result.json["killed"]) >= agents
    assert orphans.processes_of(fleet.place("m")) == set()


def test_up_after_both_were_killed_takes_the_agents_over(fleet: Launched) -> None:
    fleet.write({"A": {}, "B": {}})
    fleet.up()
    before = fleet.pids()
    node = fleet.run("node", "status", "--json").json["nodes"][0]["node"]
    for pid in (node["zygote_pid"], node["pid"]):
        os.kill(pid, signal.SIGKILL)
    assert orphans.wait_gone([node["pid"], node["zygote_pid"]], 5) == set()
    assert fleet.run("up", "fleet.yaml").code == 0
    assert fleet.pids() == before


def test_a_run_directory_whose_path_is_too_long_for_a_socket_is_refused(fleet: Launched) -> None:
    fleet.write({"A": {}})
    fleet.cluster = "c" * 90
    result = fleet.run("up", "fleet.yaml", "--cluster", "c" * 90)
    assert result.code == 2
    assert "107" in result.err
    assert "AGENTKIT_RUN_DIR" in result.err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_run_directory_of_somebody_else_is_refused(fleet: Launched) -> None:
    fleet.write({"A": {}})
    fleet.run_root.mkdir()
    (fleet.run_root / "c").mkdir()
    os.chown(fleet.run_root / "c", 12345, 12345)
    result = fleet.run("up", "fleet.yaml")
    assert result.code == 2
    assert "uid 12345" in result.err


def slow(fleet: Launched, *needs: str) -> dict[str, Any]:
    """An agent that is ready once `go` is in the fleet's folder."""
    return {"agent": "fleet_agents:Slow", "config": {"until": str(fleet.folder / "go")}, "dependencies": list(needs)}


def wait_until_forked(fleet: Launched, name: str) -> None:
    """Until the node of the only machine has a process for `name`."""
    place = fleet.place("m")
    connect_when_listening(place, within_s=PATIENCE_S).close()
    id = AgentId.parse(f"m/{name}")
    with Watch({"m": UnixDoor(str(place.control))}) as watch:
        assert watch.until(lambda rows: id in rows and rows[id].pid is not None, PATIENCE_S)
