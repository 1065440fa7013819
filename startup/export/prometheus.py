"""A Prometheus configuration for one fleet: one scrape job, and where it finds the agents. Pure.

Three ways to find them: written out (`Written`), read from a file that Prometheus watches (`Watched`), asked of Consul (`Asked`)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from agentkit.directory.entries import LAYOUT, service_name
from agentkit.errors import ConfigError
from startup.export.targets import Target, silent
from startup.spec.fleet import ConsulAccess, Fleet

#: What Prometheus takes for a file of targets (its file_sd_config); YAML would do, and JSON is what is written.
SUFFIX: Final = ".json"
#: Prometheus reads paths of target files as patterns.
_PATTERN: Final = re.compile(r"[*?\[\\]")


@dataclass(frozen=True, slots=True)
class Written:
    """All targets stand in the configuration itself."""

    targets: Sequence[Target]


@dataclass(frozen=True, slots=True)
class Watched:
    """They stand in a file, which may change while Prometheus runs."""

    file: Path


@dataclass(frozen=True, slots=True)
class Asked:
    """Consul knows them."""

    fleet: Fleet
    token_file: Path | None = None  #: in place of what the fleet file says


Source: TypeAlias = Written | Watched | Asked


def scrape_config(cluster: str, source: Source) -> dict[str, Any]:
    """One entry of `scrape_configs`. ConfigError where Prometheus can't be told what the fleet file says."""
    job: dict[str, Any] = {"job_name": service_name(cluster), "metrics_path": "/metrics"}
    match source:
        case Written(targets):
            job["static_configs"] = [target.to_wire() for target in targets]
        case Watched(file):
            job["file_sd_configs"] = [{"files": [str(file)]}]
        case Asked(fleet, token_file):
            job["consul_sd_configs"] = [consul_sd_config(fleet, token_file)]
            job["relabel_configs"] = consul_relabelling(fleet)
    # agents say their name themselves, for whoever scrapes them without labels; twice would be once too often
    job["metric_relabel_configs"] = [{"action": "labeldrop", "regex": "exported_agent"}]
    return job


def target_file(targets: Sequence[Target]) -> bytes:
    """What Prometheus reads for `Watched`."""
    return (json.dumps([target.to_wire() for target in targets], indent=1) + "\n").encode()


def checked_file(path: Path) -> Path:
    """The file for `Watched`, absolute: Prometheus would look for others beside its own configuration. ConfigError for a name
    that it does not take."""
    if path.suffix != SUFFIX:
        raise ConfigError(
            at="--targets", got=str(path), want=f"a name that ends in {SUFFIX}", fix="Prometheus reads no other files"
        )
    if _PATTERN.search(str(path.absolute())):
        fix = "Prometheus takes it for a pattern: choose another name, or another folder"
        raise ConfigError(at="--targets", got=str(path.absolute()), want="a path without * ? [ and \\", fix=fix)
    return path.absolute()


def consul_sd_config(fleet: Fleet, token_file: Path | None = None) -> dict[str, Any]:
    """How Prometheus asks the Consul of `fleet` (whose registry is consul), with what the fleet's nodes use."""
    access = fleet.consul or ConsulAccess()
    config: dict[str, Any] = {"server": access.address, "services": [service_name(fleet.cluster)]}
    if access.datacenter:
        config["datacenter"] = access.datacenter
    if access.tls:
        config["scheme"] = "https"
        paths = {"ca_file": ("ca", access.ca), "cert_file": ("cert", access.cert), "key_file": ("key", access.key)}
        tls = {name: _absolute(path, f"consul.tls.{key}") for name, (key, path) in paths.items() if path}
        if tls:
            config["tls_config"] = tls
    if token := _token_file(access, token_file):
        config["authorization"] = {"credentials_file": token}
    return config


def _token_file(access: ConsulAccess, given: Path | None) -> str | None:
    if given is not None:
        return str(given.expanduser().absolute())
    if access.token is None:
        return None
    if access.token.file is None:
        fix = "write the token into a file that Prometheus may read, and name it with --token-file"
        raise ConfigError(at="consul.token", got=f"env: {access.token.env}", want="a file", fix=fix)
    return _absolute(access.token.file, "consul.token.file")


def _absolute(path: str, at: str) -> str:
    found = Path(path).expanduser()
    if not found.is_absolute():
        fix = "Prometheus would look for it beside its own configuration: write the whole path into the fleet file"
        raise ConfigError(at=at, got=path, want="an absolute path", fix=fix)
    return str(found)


def consul_relabelling(fleet: Fleet) -> list[dict[str, Any]]:
    """From what stands in Consul (agentkit/directory/entries.py) to the labels of `Target`. Prometheus anchors each `regex`."""
    id, health = "__meta_consul_service_id", "__meta_consul_service_metadata_health"
    rules: list[dict[str, Any]] = [
        {
            "source_labels": ["__meta_consul_service_metadata_agentkit", health],
            "regex": f"{re.escape(LAYOUT)};http://[^/]+/.*",
            "action": "keep",
        }
    ]
    # Consul is not told what is an agent: those of the fleet that are none are named
    others = {f"{spec.machine}/{spec.name}" for spec in fleet.agents if spec.health_port and silent(spec)}
    if others:
        names = "|".join(map(re.escape, sorted(others)))
        rules.append({"source_labels": [id], "regex": rf"({names})(#\d+)?", "action": "drop"})
    rules += [
        _from(health, "http://([^/]+)/.*", "__address__"),
        _from(id, "(.+)", "instance"),
        _from(id, "[^/]+/([^#]+).*", "agent"),
        _from(id, "([^/]+)/.*", "machine"),
        {"target_label": "slot", "replacement": "0"},  # which ids leave out
        _from(id, r"[^#]+#(\d+)", "slot"),
        _from("__meta_consul_service_metadata_group", "(.+)", "group"),
    ]
    return rules + [_from("__meta_consul_tags", f".*,{tag}-([^,]+),.*", tag) for tag in ("class", "version")]


def _from(source: str, regex: str, target: str) -> dict[str, Any]:
    return {"source_labels": [source], "regex": regex, "target_label": target}


def text(job: Mapping[str, Any], remarks: Sequence[str] = ()) -> str:
    """A whole configuration file with one job, as YAML, `remarks` at its head."""
    import yaml  # 12 ms, and --json does without

    body: str = yaml.safe_dump({"scrape_configs": [job]}, sort_keys=False, default_flow_style=False, width=1000)
    return "".join(f"# {line}\n" for line in remarks) + body
