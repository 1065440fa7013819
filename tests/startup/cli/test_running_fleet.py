"""Commands that look at a running fleet, or change a part of it: one fleet on two machines for all of them."""

from __future__ import annotations

import signal
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import pytest

from tests.startup.cli.launched import PATIENCE_S, Launched

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Launched]:
    with Launched(machines=("m1", "m2")) as launched:
        launched.write(
            {
                "Base": {},
                "Middle": {"machine": "m2", "dependencies": ["Base"], "config": {"words": "two words"}},
                "Top": {"dependencies": ["Middle"]},
                "Aside": {"group": "more", "required": False},
            }
        )
        launched.up()
        yield launched


def states(fleet: Launched) -> dict[str, str]:
    return {agent["name"]: agent["phase"] for agent in fleet.run("status", "--json").json["agents"]}


def test_status_lists_every_agent_of_every_machine_with_its_figures(fleet: Launched) -> None:
    told = fleet.run("status", "--json").json
    assert told["cluster"] == "c"
    assert [(agent["machine"], agent["instance"]) for agent in told["agents"]] == [
        ("m1", "Aside"), ("m1", "Base"), ("m1", "Top"), ("m2", "Middle"),
    ]  # fmt: skip
    for agent in told["agents"]:
        assert agent["phase"] == "ready"
        assert agent["health"] == "ok"
        assert agent["memory_mb"] > 0
        assert agent["uptime_s"] > 0
        assert 0 <= agent["forked_s"] <= agent["ready_s"]
        assert agent["endpoint"].startswith("tcp://127.0.0.1:")
        assert agent["health_url"].startswith("http://127.0.0.1:")
    assert sorted(node["machine"] for node in told["nodes"]) == ["m1", "m2"]


def test_status_as_text_names_machines_and_agents(fleet: Launched) -> None:
    text = fleet.run("status").out
    assert "cluster c: 4 agents, 4 ready; revision " in text
    assert "m1: node " in text
    assert "Middle" in text


def test_status_of_one_agent_shows_its_log(fleet: Launched) -> None:
    result = fleet.run("status", "Middle")
    assert result.code == 0
    assert result.out.startswith("m2/Middle\n")
    assert "started with two words" in result.out
    assert "unblocked by m1/Base" in result.out


def test_an_agent_that_is_not_there_is_a_usage_error_with_the_nearest_name(fleet: Launched) -> None:
    result = fleet.run("status", "Midle")
    assert result.code == 2
    assert "did you mean `Middle`" in result.err


def test_call_prints_the_result_as_text_or_json(fleet: Launched) -> None:
    assert fleet.run("call", "Middle", "echo", "text=ab", "times=2").out == "abab\n"
    assert fleet.run("call", "Middle", "echo", "--payload", '{"text": "x"}', "--json").json == {"result": "x"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("Middle", "fail"), "handler_error"),
        (("Middle", "echo", "times=2"), "bad_request"),
        (("Middle", "nothing"), "unknown_method"),
        (("Nobody", "echo"), "no_such_agent"),
    ],
)
def test_a_call_that_fails_exits_with_1_and_its_code(fleet: Launched, words: tuple[str, ...], code: str) -> None:
    result = fleet.run("call", *words, "--json")
    assert result.code == 1
    assert result.json["error"]["code"] == code
    text = fleet.run("call", *words)
    assert (text.code, text.out) == (1, "")
    assert code in text.err


def test_a_call_is_traced_through_three_agents_of_two_machines(fleet: Launched) -> None:
    called = fleet.run("call", "Top", "pass_on", 'to=["Middle", "Base"]', "--trace")
    assert called.out == "3\n"
    _, _, id = called.err.strip().rpartition(" ")
    spans = fleet.run("trace", id[:12], "--json").json["spans"]
    assert {span["trace_id"] for span in spans} == {id}
    assert [(span["agent"], span["kind"], span["code"]) for span in spans] == [
        ("m1/Top", "server", "ok"), ("m1/Top", "client", "ok"),
        ("m2/Middle", "server", "ok"), ("m2/Middle", "client", "ok"),
        ("m1/Base", "server", "ok"),
    ]  # fmt: skip
    assert [span["parent_id"] for span in spans[1:]] == [span["span_id"] for span in spans[:-1]]
    tree = fleet.run("trace", id).out
    assert any(line.endswith("   └─ Base.pass_on") for line in tree.splitlines())
    assert id[:12] in fleet.run("trace", "--agent", "Base").out
    assert id[:12] not in fleet.run("trace", "--agent", "Aside").out


def test_a_trace_that_nobody_keeps_is_a_usage_error(fleet: Launched) -> None:
    for words, said in ((("0" * 32,), "still keeps"), (("Top",), "hexadecimal")):
        result = fleet.run("trace", *words)
        assert result.code == 2
        assert said in result.err


def test_describe_lists_methods(fleet: Launched) -> None:
    assert "echo(text: str, times: int = ...) -> str\n" in fleet.run("describe", "Middle").out
    told = fleet.run("describe", "Middle", "--json").json["result"]
    assert set(told["methods"]) == {"echo", "fail", "pass_on", "pid"}


def test_one_node_shows_what_the_nodes_of_all_machines_know(fleet: Launched) -> None:
    told = fleet.run_on("m1", "status", "--json").json
    assert [(agent["machine"], agent["instance"], agent["memory_mb"] > 0) for agent in told["agents"]] == [
        ("m1", "Aside", True), ("m1", "Base", True), ("m1", "Top", True), ("m2", "Middle", True),
    ]  # fmt: skip
    assert {node["machine"]: node["node"]["pid"] for node in told["nodes"]} == {
        node["machine"]: node["node"]["pid"] for node in fleet.run("status", "--json").json["nodes"]
    }
    assert "started with two words" in fleet.run_on("m1", "status", "Middle").out
    assert "m2: node " in fleet.run_on("m1", "status").out
    lines = fleet.run_on("m1", "logs", "--json").json["lines"]
    assert {line["agent"] for line in lines} == {"m1/Base", "m1/Top", "m1/Aside", "m2/Middle"}
    stamps = [line["timestamp"] for line in lines if line["timestamp"]]
    assert stamps == sorted(stamps)
    assert fleet.run_on("m1", "call", "Middle", "echo", "text=far").out == "far\n"
    assert len(fleet.run_on("m1", "timeline", "--json").json["agents"]) == 4


def test_logs_are_merged_and_can_be_limited_to_agents(fleet: Launched) -> None:
    lines = fleet.run("logs", "--json").json["lines"]
    assert {line["agent"] for line in lines} == {"m1/Base", "m1/Top", "m1/Aside", "m2/Middle"}
    stamps = [line["timestamp"] for line in lines if line["timestamp"]]
    assert stamps == sorted(stamps)
    only = fleet.run("logs", "Middle", "-n", "50").out
    assert "started with two words" in only
    assert "started with hello" not in only


def test_logs_follow_what_comes(fleet: Launched) -> None:
    process = fleet.popen("logs", "Base", "-f", "-n", "0", "--json")
    try:
        assert process.stdout is not None
        fleet.run("restart", "Base")
        assert '"agent": "m1/Base"' in process.stdout.readline()
    finally:
        process.terminate()
        process.communicate()


def test_who_follows_ends_with_the_reader_and_not_first_with_the_next_line(fleet: Launched) -> None:
    process = fleet.popen("logs", "Base", "-f", "-n", "1")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")


def test_timeline_shows_the_path_and_draws_a_picture(fleet: Launched) -> None:
    told = fleet.run("timeline", "--json").json
    assert {agent["id"] for agent in told["agents"]} == {"m1/Base", "m2/Middle", "m1/Top", "m1/Aside"}
    assert "SLOWEST PATH" in fleet.run("timeline").out
    assert fleet.run("timeline", "--svg", "start.svg").code == 0
    ET.parse(fleet.folder / "start.svg")


def test_node_status_tells_both_nodes(fleet: Launched) -> None:
    told = fleet.run("node", "status", "--json").json["nodes"]
    assert [(node["machine"], node["revision"]["down"]) for node in told] == [("m1", False), ("m2", False)]
    assert "m2" in fleet.run("node", "status").out


def test_stop_stops_only_what_is_named_and_start_brings_it_back(fleet: Launched) -> None:
    before = fleet.pids()
    stopped = fleet.run("stop", "Middle", "--json")
    assert stopped.code == 0
    assert stopped.json["stopped"] == ["m2/Middle"]
    assert states(fleet) == {"Base": "ready", "Middle": "stopped", "Top": "ready", "Aside": "ready"}
    started = fleet.run("start", "Middle", "--json")
    assert started.code == 0, started.err
    assert [agent["name"] for agent in started.json["agents"]] == ["Base", "Middle"]
    after = fleet.pids()
    assert {name for name in before if before[name] != after[name]} == {"Middle"}


def test_stop_with_dependants_takes_them_along_and_start_of_the_top_brings_all_back(fleet: Launched) -> None:
    assert fleet.run("stop", "Base", "--with-dependants").code == 0
    assert states(fleet) == {"Base": "stopped", "Middle": "stopped", "Top": "stopped", "Aside": "ready"}
    result = fleet.run("start", "Top")
    assert result.code == 0, result.err
    assert set(states(fleet).values()) == {"ready"}


def test_restart_gives_a_new_process_to_only_the_named(fleet: Launched) -> None:
    before = fleet.pids()
    result = fleet.run("restart", "Top")
    assert result.code == 0, result.err
    assert "1 agent ready" in result.out
    after = fleet.pids()
    assert {name for name in before if before[name] != after[name]} == {"Top"}


def test_up_again_changes_nothing_and_says_so(fleet: Launched) -> None:
    before = fleet.pids()
    result = fleet.run("up", "fleet.yaml")
    assert result.code == 0, result.err
    assert "nothing changes: 4 agents stay as they are" in result.err
    assert fleet.pids() == before


def test_a_cluster_of_that_name_from_another_project_is_left_alone(fleet: Launched) -> None:
    other = fleet.folder / "other"
    other.mkdir()
    (other / "fleet.yaml").write_text(fleet.file.read_text())
    (other / "fleet_agents.py").write_text((fleet.folder / "fleet_agents.py").read_text())
    result = fleet.run("up", "other/fleet.yaml")
    assert result.code == 2
    assert str(fleet.file) in result.err


def test_status_is_found_without_a_name_where_one_cluster_runs_and_not_by_a_wrong_one(fleet: Launched) -> None:
    assert fleet.run("status").code == 0
    missing: Any = fleet.run("status", "--cluster", "elsewhere", "--json")
    assert missing.code == 4
    assert missing.json["error"]["code"] == "NoNode"


def test_a_stopped_agent_is_not_restarted_but_told_of(fleet: Launched) -> None:
    assert fleet.run("stop", "Aside").code == 0
    result = fleet.run("restart", "Aside", "--json")
    assert (result.code, result.json) == (1, {"cluster": "c", "restarted": [], "unreached": []})
    assert "not restarted, because nothing of it shall run: m1/Aside; `agentkit start` starts it" in result.err
    assert fleet.run("start", "Aside").code == 0


def test_logs_of_another_machine_are_followed_through_this_ones_node(fleet: Launched) -> None:
    place = fleet.place("m2").log("Middle")
    words = [sys.executable, "-m", "startup", "logs", "Middle", "-f", "-n", "1"]
    with fleet.begin(*words, more_environment=fleet.on("m1")) as following:
        assert following.stdout is not None
        following.stdout.readline()
        for number in range(3):
            with place.open("a") as log:
                log.write(f"line {number}\n")
            assert following.stdout.readline().endswith(f"line {number}\n")
        following.send_signal(signal.SIGINT)
        assert following.wait(PATIENCE_S) == 130
