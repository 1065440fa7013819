"""`agentkit export prometheus`, and a real Prometheus that scrapes a real fleet with what it prints."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from startup.export.prometheus import text
from tests.consul.fixtures import consul_server, needs
from tests.consul.server import Server
from tests.startup.cli.launched import PATIENCE_S, Launched
from tests.startup.export.server import ASKS_CONSUL, Prometheus, check
from tests.startup.node.test_registry import eventually

__all__ = ["consul_server"]
pytestmark = [pytest.mark.process, pytest.mark.slow]

#: Beside agents: one that says nothing of metrics, though it has a health port.
PROGRAM = {"command": ["sleep", "1000"], "sockets": "self", "ready": {"after": "0s"}}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Launched]:
    with Launched(machines=("m1", "m2")) as launched:
        launched.write({"Base": {}, "Many": {"machine": "m2", "group": "more", "replicas": 2}, "Other": PROGRAM})
        launched.up()
        yield launched


@contextmanager
def watching(fleet: Launched, file: Path) -> Iterator[Iterator[Any]]:
    """What `--watch --json` prints, one document after the other; ended by Ctrl-C."""
    with fleet.popen("export", "prometheus", "--targets", str(file), "--watch", "--json") as watcher:
        assert watcher.stdout is not None
        try:
            yield map(json.loads, watcher.stdout)
        finally:
            watcher.send_signal(signal.SIGINT)
        assert watcher.wait(PATIENCE_S) == 130


def text_of(fleet: Launched, *words: str) -> str:
    result = fleet.run("export", "prometheus", *words)
    assert result.code == 0, result.err
    return result.out


def test_a_program_of_another_make_is_named_and_not_scraped(fleet: Launched) -> None:
    result = fleet.run("export", "prometheus")
    assert "left out, is no agentkit agent: m1/Other" in result.err
    assert "Other" not in result.out


def test_json_tells_configuration_and_targets_in_one_document(fleet: Launched) -> None:
    told = fleet.run("export", "prometheus", "--json").json
    assert told["cluster"] == "c"
    assert told["left_out"] == {"m1/Other": "is no agentkit agent"}
    assert told["scrape_configs"][0]["static_configs"] == told["targets"]
    assert [target["labels"]["instance"] for target in told["targets"]] == ["m1/Base", "m2/Many", "m2/Many#1"]


def test_prometheus_scrapes_the_fleet_with_its_labels_and_follows_it(fleet: Launched) -> None:
    needs("prometheus")
    assert fleet.run("call", "Base", "echo", "text=x").code == 0
    file = fleet.folder / "agents.json"
    with watching(fleet, file) as documents:
        (job,) = next(documents)["scrape_configs"]
        assert job["file_sd_configs"] == [{"files": [str(file)]}]
        assert (file.stat().st_mode & 0o044) == 0o044, "Prometheus runs as a user of its own"
        with Prometheus(text(job)) as prometheus:
            labels = prometheus.up("m1/Base", "m2/Many", "m2/Many#1")["m2/Many#1"]["labels"]
            (series,) = prometheus.series('agent_requests_total{method="echo",outcome="ok",agent="Base"} == 1')
            assert fleet.run("stop", "Base").code == 0
            prometheus.up("m2/Many", "m2/Many#1")
        assert fleet.run("start", "Base").code == 0
        while len(json.loads(file.read_text())) != 3:
            next(documents)
    assert labels.pop("version")
    assert labels == {
        "job": "agentkit-c", "instance": "m2/Many#1", "agent": "Many", "machine": "m2", "slot": "1", "group": "more", "class": "core",
    }  # fmt: skip
    assert series["metric"]["instance"] == "m1/Base"
    assert "exported_agent" not in series["metric"]
    assert not list(fleet.folder.glob(".agents.json*")), "nothing half written is left"


def test_an_agent_that_failed_is_a_target_and_a_fleet_that_has_ended_has_none(tmp_path: Path) -> None:
    with Launched() as fleet:
        fleet.write({"Base": {}, "Bad": {"agent": "fleet_agents:Broken", "required": False}})
        fleet.run("up", str(fleet.file))
        file = tmp_path / "agents.json"
        with watching(fleet, file) as documents:
            assert len(next(documents)["targets"]) == 2
            assert fleet.run("down").code == 0
            while next(documents)["targets"]:
                pass
            assert json.loads(file.read_text()) == []
            fleet.run("up", str(fleet.file))
            while len(next(documents)["targets"]) != 2:
                pass


def test_prometheus_finds_the_fleet_through_consul(consul_server: Server, tmp_path: Path) -> None:
    needs("prometheus", ASKS_CONSUL)
    with Launched() as fleet:
        fleet.write(
            {"Base": {"group": "more"}, "Many": {"replicas": 2}},
            registry="consul",
            consul={"address": consul_server.address},
        )
        fleet.up()
        configuration = text_of(fleet)
        check(configuration, tmp_path, ASKS_CONSUL)
        static = fleet.run("export", "prometheus", "--targets", str(tmp_path / "a.json"), "--json").json["targets"]
        wanted = {target["labels"]["instance"]: target for target in static}
        consul_server.put("/v1/agent/service/register", {"ID": "stranger", "Name": "agentkit-c", "Port": 1})
        eventually(lambda: len(consul_server.statuses("agentkit-c")) == 4)
        with Prometheus(configuration, ASKS_CONSUL) as prometheus:
            targets = prometheus.up(*wanted)
            assert prometheus.series('agent_requests_total{agent="Many",slot="1",machine="m"}')
    for instance, target in targets.items():
        assert target["labels"] == wanted[instance]["labels"] | {"job": "agentkit-c"}
        assert target["discoveredLabels"]["__address__"] != target["scrapeUrl"].split("/")[2]
        assert target["scrapeUrl"] == f"http://{wanted[instance]['targets'][0]}/metrics"


def test_the_fleet_of_a_file_need_not_run(tmp_path: Path) -> None:
    with Launched() as fleet:
        fleet.write({"Base": {"health_check_port": 23456}})
        told = fleet.run("export", "prometheus", str(fleet.file), "--json").json
        (target,) = told["targets"]
        assert target["targets"] == ["127.0.0.1:23456"]
        assert "version" not in target["labels"], "nothing runs there yet"
        without = fleet.run("export", "prometheus")
        assert without.code == 4
        fleet.write({"Base": {"health_check_port": 70000}})
        bad = fleet.run("export", "prometheus", str(fleet.file))
        assert bad.code == 2
        assert "70000" in bad.err
        assert "want a file without errors; it has 1 error" in bad.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--watch"], "--watch: got '--watch', want --targets FILE.json"),
        (["fleet.yaml", "--targets", "a.json", "--watch"], "and no FILE"),
        (["--targets", "agents.txt"], "want a name that ends in .json"),
        (["--targets", "no/such/folder/a.json"], "No such file or directory"),
        (["--token-file", "t"], "want `registry: consul`, without --targets"),
    ],
)
def test_what_can_not_be_done_is_said_and_nothing_is_written(fleet: Launched, words: list[str], said: str) -> None:
    result = fleet.run("export", "prometheus", *words)
    assert result.code == 2
    assert said in result.err
    assert not result.out


def test_another_format_is_a_usage_error(fleet: Launched) -> None:
    result = fleet.run("export", "graphite")
    assert result.code == 2
    assert "prometheus" in result.err
