"""`doctor` and Consul."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from startup.cli.main import main
from startup.cli.registry_fitness import ConsulFacts, examine
from tests.agentkit.directory.test_entries import entry
from tests.consul.fixtures import consul_server
from tests.consul.server import Server
from tests.faults.consul_pair import eventually

__all__ = ["consul_server"]

GOOD: dict[str, Any] = {"address": "h:1", "version": "1.8.7", "leader": "h:2", "clock_off_s": 0.4}


def verdicts(**changes: Any) -> dict[str, str]:
    return {found.name: found.verdict for found in examine(ConsulFacts(**(GOOD | changes)))}


def test_all_is_well() -> None:
    assert set(verdicts().values()) == {"ok"}
    assert set(verdicts(version="1.22.1+ent").values()) == {"ok"}
    assert "consul config" not in verdicts()
    assert verdicts(config_prefix="p")["consul config"] == "ok"


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"error": "refused"}, "consul", "fail"),
        ({"leader": ""}, "consul leader", "fail"),
        ({"refused": "403"}, "consul token", "fail"),
        ({"no_locks": "403"}, "consul leaders", "warn"),
        ({"config_prefix": "p", "no_config": "403"}, "consul config", "fail"),
        ({"clock_off_s": -60.0}, "consul clock", "warn"),
        ({"version": "1.4.0"}, "consul version", "warn"),
        ({"strangers": ("x",)}, "consul strangers", "warn"),
        ({"taken": ("m/A",)}, "consul ids", "fail"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(changes: dict[str, Any], name: str, verdict: str) -> None:
    found = {found.name: found for found in examine(ConsulFacts(**(GOOD | changes)))}
    assert found[name].verdict == verdict
    assert found[name].fix
    assert {other.verdict for other in found.values() if other.name != name} <= {"ok"}


def doctor(folder: Path, capsys: pytest.CaptureFixture[str], server: Server, token: str = "") -> dict[str, str]:
    secret = folder / "token"
    secret.write_text(token)
    (folder / "fleet.yaml").write_text(
        f"version: 1\ncluster: c\nregistry: consul\n"
        f"consul: {{address: '{server.address}', config_prefix: p/q, token: {{file: {secret}}}}}\n"
        "agent_groups: {core: {A: {command: [sleep, '1'], port: 10100}}}\n"
    )
    main(["doctor", str(folder / "fleet.yaml"), "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    return {check["name"]: check["verdict"] for check in checks if check["name"].startswith("consul")}


@pytest.mark.process
@pytest.mark.slow
def test_a_real_consul_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str], consul_server: Server) -> None:
    found = doctor(tmp_path, capsys, consul_server)
    assert len(found) == 9
    assert set(found.values()) == {"ok"}
    assert not consul_server.services()  # nothing is left of the questions
    assert consul_server.get("/v1/kv/?keys=true") == []
    assert consul_server.get("/v1/session/list") == []
    consul_server.put("/v1/agent/service/register", entry("local/A").definition(15.0, None))
    consul_server.put("/v1/agent/service/register", {"ID": "x", "Name": "agentkit-c"})
    consul_server.put("/v1/agent/service/register", {"ID": "local/A", "Name": "theirs"})
    found = doctor(tmp_path, capsys, consul_server)
    assert {name for name, verdict in found.items() if verdict != "ok"} == {"consul strangers", "consul ids"}
    consul_server.stop()
    assert doctor(tmp_path, capsys, consul_server) == {"consul": "fail"}


@pytest.mark.process
@pytest.mark.slow
def test_a_token_without_rights_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], consul_server: Server
) -> None:
    del consul_server  # skips where there is none
    acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": "root", "agent": "root"}}
    server = Server("closed", settings={"acl": acl})
    server.token = "root"
    try:
        server.start()
        eventually(
            lambda: (
                "ID" in server.put("/v1/acl/policy", {"Name": "little", "Rules": 'key_prefix "" { policy = "read" }'})
            )
        )
        little = server.put("/v1/acl/token", {"Policies": [{"Name": "little"}]})["SecretID"]
        rights = {"consul token": "fail", "consul leaders": "warn", "consul config": "ok"}
        assert rights.items() <= doctor(tmp_path, capsys, server, little).items()
        nothing = server.put("/v1/acl/token", {})["SecretID"]
        assert doctor(tmp_path, capsys, server, nothing)["consul config"] == "fail"
        assert set(doctor(tmp_path, capsys, server, "root").values()) == {"ok"}
    finally:
        server.close()
