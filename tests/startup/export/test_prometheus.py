"""What Prometheus is told; Prometheus's own tool reads it."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import ConfigError
from startup.export.prometheus import Asked, Source, Watched, Written, checked_file, scrape_config, target_file, text
from startup.export.targets import targets
from startup.spec.fleet import ConsulAccess, Fleet, ProgramTarget, SecretRef
from tests.consul.fixtures import needs
from tests.consul.server import Server
from tests.startup.export.server import ASKS_CONSUL, check
from tests.startup.export.test_targets import fleet_of, scraped

DOCUMENT = Path(__file__).parents[3] / "docs/monitoring.md"


def consul_fleet(**keys: Any) -> Fleet:
    from dataclasses import replace

    program = scraped("m/prog.x", target=ProgramTarget(argv=("java",)))
    return replace(fleet_of(scraped("a"), program), registry="consul", consul=ConsulAccess(**keys))


def consul_of(token_file: Path | None = None, **keys: Any) -> dict[str, Any]:
    config: dict[str, Any] = scrape_config("c", Asked(consul_fleet(**keys), token_file))["consul_sd_configs"][0]
    return config


def test_the_job_is_named_after_the_cluster() -> None:
    assert scrape_config("reference", Written(()))["job_name"] == "agentkit-reference"


def test_an_agents_name_stands_beside_each_series_once() -> None:
    assert scrape_config("c", Written(()))["metric_relabel_configs"] == [
        {"action": "labeldrop", "regex": "exported_agent"}
    ]


def test_consul_is_asked_as_the_fleet_asks_it() -> None:
    access = {"address": "consul.lan:8501", "datacenter": "dc2", "tls": True, "ca": "/ca", "cert": "/c", "key": "/k"}
    assert consul_of(**access, token=SecretRef(file="/run/token")) == {
        "server": "consul.lan:8501",
        "services": ["agentkit-c"],
        "datacenter": "dc2",
        "scheme": "https",
        "tls_config": {"ca_file": "/ca", "cert_file": "/c", "key_file": "/k"},
        "authorization": {"credentials_file": "/run/token"},
    }


def test_consul_without_anything_special_is_asked_plainly() -> None:
    assert consul_of() == {"server": "127.0.0.1:8500", "services": ["agentkit-c"]}


def test_the_homes_of_paths_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ops")
    assert consul_of(token=SecretRef(file="~/token"))["authorization"] == {"credentials_file": "/home/ops/token"}


def test_a_token_from_the_environment_needs_a_file_for_prometheus() -> None:
    access = {"token": SecretRef(env="CONSUL_TOKEN")}
    with pytest.raises(ConfigError, match=r"consul\.token: got 'env: CONSUL_TOKEN', want a file; .*--token-file"):
        consul_of(**access)
    assert consul_of(Path("/etc/prometheus/token"), **access)["authorization"] == {
        "credentials_file": "/etc/prometheus/token"
    }


@pytest.mark.parametrize("keys", [{"token": SecretRef(file="token")}, {"tls": True, "ca": "ca.pem"}])
def test_relative_paths_are_refused_because_prometheus_would_look_elsewhere(keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"consul\.(token\.file|tls\.ca): .* want an absolute path"):
        consul_of(**keys)


def test_no_secret_stands_in_the_configuration() -> None:
    (source,) = [Asked(consul_fleet(token=SecretRef(file="/run/token")))]
    assert "authorization" in text(scrape_config("c", source))
    assert "credentials:" not in text(scrape_config("c", source))


@pytest.mark.parametrize("name", ["agents.yaml", "agents", "agents.json.tmp"])
def test_prometheus_takes_targets_from_json_only(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--targets: .* want a name that ends in \.json"):
        checked_file(Path(name))


@pytest.mark.parametrize("name", ["/a/*.json", "/a/[b]/c.json", "/a/b?.json"])
def test_a_path_that_prometheus_takes_for_a_pattern_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="takes it for a pattern"):
        checked_file(Path(name))


def test_a_file_of_targets_is_named_in_full() -> None:
    assert checked_file(Path("agents.json")) == Path.cwd() / "agents.json"


@pytest.mark.process
@pytest.mark.parametrize("kind", ["written", "watched"])
def test_promtool_finds_no_fault(kind: str, tmp_path: Path) -> None:
    needs("promtool")
    found = targets(fleet_of(scraped("m/a"), scraped("far/b"), m="::1", far="10.0.0.7"), versions={"m": "1"})
    file = tmp_path / "agents.json"
    file.write_bytes(target_file(found))
    source: Source = Written(found) if kind == "written" else Watched(file)
    said = check(text(scrape_config("c", source), ["a remark"]), tmp_path)
    assert "WARNING" not in said


@pytest.mark.process
def test_promtool_finds_no_fault_with_consul(tmp_path: Path) -> None:
    needs("promtool", ASKS_CONSUL)
    check(text(scrape_config("c", Asked(consul_fleet(datacenter="dc2", tls=True)))), tmp_path, ASKS_CONSUL)


@pytest.mark.process
def test_promtool_knows_how_a_token_is_read_from_a_file(tmp_path: Path) -> None:
    """Debian has no Prometheus that both asks Consul and reads tokens from files (2.28 is the first): another discovery's
    is the same part of Prometheus."""
    needs("promtool")
    (tmp_path / "token").write_text("x")
    job = scrape_config("c", Asked(consul_fleet(token=SecretRef(file=str(tmp_path / "token")))))
    (asked,) = job.pop("consul_sd_configs")
    job["http_sd_configs"] = [{"url": "http://127.0.0.1:1/", "authorization": asked["authorization"]}]
    check(text(job), tmp_path)


@pytest.mark.process
def test_promtool_would_find_a_fault(tmp_path: Path) -> None:
    needs("promtool")
    job = scrape_config("c", Written(()))
    with pytest.raises(AssertionError, match="unknown relabel action"):
        check(text(job | {"relabel_configs": [{"action": "nonsense"}]}), tmp_path)


def test_a_file_of_targets_holds_one_entry_for_each_agent() -> None:
    entries = json.loads(target_file(targets(fleet_of(scraped("m/a"), scraped("m/b", health_port=9001)))))
    assert [entry["targets"] for entry in entries] == [["127.0.0.1:9000"], ["127.0.0.1:9001"]]
    assert entries[1]["labels"]["agent"] == "b"


@pytest.mark.process
@pytest.mark.slow
def test_consul_takes_the_token_as_prometheus_sends_it_and_needs_no_more_rights_than_documented() -> None:
    needs("consul")
    server = Server(settings={"acl": {"enabled": True, "default_policy": "deny", "tokens": {"master": "root"}}})
    server.token = "root"
    try:
        server.start()
        server.put("/v1/agent/service/register", {"ID": "m/a", "Name": "agentkit-c", "Port": 1})
        rules = next(line for line in DOCUMENT.read_text().splitlines() if "service_prefix" in line)
        rights = " ".join(re.findall(r"\w+ \"[^\"]*\" \{[^}]*\}", rules))
        server.put("/v1/acl/policy", {"Name": "p", "Rules": rights})
        token = server.put("/v1/acl/token", {"Policies": [{"Name": "p"}]})["SecretID"]
        for path, bearer, found in (
            ("/v1/health/service/agentkit-c", token, 1),
            ("/v1/health/service/agentkit-c", "", 0),
            ("/v1/agent/self", token, None),
        ):
            request = urllib.request.Request(f"http://{server.address}{path}")
            if bearer:
                request.add_header("Authorization", f"Bearer {bearer}")
            with urllib.request.urlopen(request, timeout=10) as answer:
                told = json.loads(answer.read())
            assert found is None or len(told) == found
    finally:
        server.close()
