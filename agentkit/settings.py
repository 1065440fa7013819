"""Every knob that one agent process has, read once from its environment. How the launcher, systemd or a hand starts it is the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentkit.errors import ConfigError
from agentkit.health.checks import CheckPolicy
from agentkit.names import AgentId, AgentName, Incarnation, MachineName, is_loopback, is_name
from agentkit.observe.trace import DEFAULT_SAMPLE
from agentkit.resilience.policy import NOTHING_SAID, FilePolicy

#: Field -> the variable that it is read from.
_VARIABLES: Final[Mapping[str, str]] = {
    "host": "AGENT_HOST",
    "security": "AGENTKIT_SECURITY",
    "key": "AGENTKIT_KEY",
    "port": "PORT",
    "health_port": "HEALTH_CHECK_PORT",
    "config": "AGENT_CONFIG",
    "config_over": "AGENTKIT_CONFIG_OVER",
    "peers": "AGENTKIT_PEERS",
    "secrets": "AGENTKIT_SECRETS",
    "grace_s": "AGENTKIT_GRACE_S",
    "watchdog_s": "WATCHDOG_USEC",
    "trace_sample": "AGENTKIT_TRACE_SAMPLE",
    "state_store": "AGENTKIT_STATE_STORE",
    "state_every_s": "AGENTKIT_STATE_EVERY_S",
    "hibernate": "AGENTKIT_HIBERNATE",
    "resource_memory_bytes": "AGENTKIT_RESOURCE_MEMORY",
    "kind": "AGENTKIT_KIND",
    "log_format": "AGENTKIT_LOG_FORMAT",
    "log_level": "AGENTKIT_LOG_LEVEL",
}
#: Holds the address of the Redis where states are kept, itself or as the name of a secret.
STATE_URL: Final = "AGENTKIT_STATE_URL"


#: How deep a sleep is: light keeps the process, deep ends it.
Depth = Literal["light", "deep"]


class AgentConfig(BaseModel):
    """Base of an agent's own `Config`: its part of the fleet file, validated before anything starts. Frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def merged(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `config`: maps are merged key by key, everything else is replaced."""
    result = dict(config)
    for key, value in over.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


class SecretSource(BaseModel):
    """Where one secret is read from, in this process and nowhere before it."""

    model_config = ConfigDict(frozen=True)
    file: str | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("either `file` or `env`")
        return self


class HibernateSettings(BaseModel):
    """When an agent sleeps, and how deep. Default: what a fleet file without `hibernate` means."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    after_s: float = Field(300.0, gt=0, allow_inf_nan=False)
    depth: Literal["light", "deep", "never"] = "light"
    events: Literal["wake", "count"] = "wake"


class AgentSettings(BaseModel):
    """What an agent process is told by whoever starts it. Durations in seconds."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    id: AgentId
    incarnation: Incarnation = Incarnation(0)
    cluster: str = ""
    host: str = Field("127.0.0.1", description="address to bind when no listener is handed down")
    security: Literal["loopback", "none", "curve"] = "loopback"
    keys: str = Field("", description="folder of keys; empty: the usual one (agentkit.security.folder)")
    key: str = Field(
        "", pattern="^([0-9a-f]{16})?$", description="fingerprint of the key to be; empty: the machine's newest"
    )
    encrypts_loopback: bool = False
    port: int = Field(0, ge=0, le=65535, description="0: the kernel chooses")
    health_port: int | None = Field(None, ge=0, le=65535, description="None: no HTTP")
    config: Mapping[str, Any] = Field(default_factory=dict)
    config_over: Mapping[str, Any] = Field(default_factory=dict, description="what Consul says over `config`")
    policy: FilePolicy = Field(NOTHING_SAID, description="what the fleet file says under `serve` and `calls`")
    node_socket: str | None = None
    peers: Mapping[str, str] = Field(default_factory=dict, description="name -> endpoint, instead of a node")
    data_dir: Path = Path()
    secrets: Mapping[str, SecretSource] = Field(default_factory=dict)
    grace_s: float = Field(10.0, ge=0, allow_inf_nan=False)
    watchdog_s: float = Field(30.0, ge=0, allow_inf_nan=False)
    checks: CheckPolicy = CheckPolicy()
    trace_sample: float = Field(
        DEFAULT_SAMPLE, ge=0, le=1, allow_inf_nan=False, description="part of the calls begun here that is traced"
    )
    state_store: Literal["sqlite", "redis"] = "sqlite"
    state_url: SecretSource | None = Field(None, description="what holds the address of its Redis")
    state_every_s: float = Field(
        300.0, ge=0, allow_inf_nan=False, description="between two saves of a state that changes; 0: only when asked"
    )
    hibernate: HibernateSettings = HibernateSettings()
    resource_memory_bytes: int | None = Field(None, gt=0, description="for self.resources; None: no limit")
    kind: Literal["service", "task"] = Field("service", description="a task ends when its `run` returns")
    log_format: Literal["json", "text", "auto"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, default_name: str) -> Self:
        """The settings that `environ` holds. ConfigError names the variable that is wrong."""
        name = environ.get("AGENT_NAME", default_name)
        machine = environ.get("AGENT_MACHINE", "local")
        for variable, value in (("AGENT_NAME", name), ("AGENT_MACHINE", machine)):
            if not is_name(value):
                raise ConfigError(at=variable, got=value, want="a letter, then letters, digits, _ . or -")
        watchdog_us = _number(environ, "WATCHDOG_USEC", 0)
        checks = _json(environ, "AGENTKIT_HEALTH")
        data_dir = environ.get("AGENTKIT_DATA_DIR")
        secrets = _json(environ, "AGENTKIT_SECRETS")
        own_url = {"env": STATE_URL} if environ.get(STATE_URL) else None
        instance = environ.get("AGENT_INSTANCE", name)
        _, hash_, slot = instance.partition("#")
        if hash_ and not (slot.isascii() and slot.isdigit()):
            raise ConfigError(at="AGENT_INSTANCE", got=instance, want="name#slot with a number for the slot")
        return cls._checked(
            id=AgentId(MachineName(machine), AgentName(name), int(slot or 0)),
            incarnation=Incarnation(_integer(environ, "AGENTKIT_INCARNATION", 0)),
            cluster=environ.get("AGENTKIT_CLUSTER", ""),
            host=environ.get("AGENT_HOST", "127.0.0.1"),
            security=environ.get("AGENTKIT_SECURITY", "loopback"),
            keys=environ.get("AGENTKIT_KEYS", ""),
            key=environ.get("AGENTKIT_KEY", ""),
            encrypts_loopback=environ.get("AGENTKIT_LOCAL") == "curve",
            port=_integer(environ, "PORT", 0),
            health_port=_integer(environ, "HEALTH_CHECK_PORT", 0) if environ.get("HEALTH_CHECK_PORT") else None,
            config=_json(environ, "AGENT_CONFIG"),
            config_over=_json(environ, "AGENTKIT_CONFIG_OVER"),
            policy=FilePolicy.read(_json(environ, "AGENTKIT_POLICY"), at="AGENTKIT_POLICY"),
            node_socket=environ.get("AGENTKIT_DOOR") or environ.get("AGENTKIT_NODE") or None,
            peers=_json(environ, "AGENTKIT_PEERS"),
            data_dir=Path(data_dir) if data_dir else _default_data_dir(environ, machine, name),
            state_store=environ.get("AGENTKIT_STATE_STORE", "sqlite"),
            state_url=secrets.pop(STATE_URL, own_url),  # ours, so that an author's `secrets` does not have it
            secrets=secrets,
            grace_s=_number(environ, "AGENTKIT_GRACE_S", 10.0),
            watchdog_s=watchdog_us / 1e6,
            checks=_policy(checks),
            trace_sample=_number(environ, "AGENTKIT_TRACE_SAMPLE", DEFAULT_SAMPLE),
            state_every_s=_number(environ, "AGENTKIT_STATE_EVERY_S", 300.0),
            hibernate=_json(environ, "AGENTKIT_HIBERNATE"),
            resource_memory_bytes=_integer(environ, "AGENTKIT_RESOURCE_MEMORY", 0) or None,
            kind=environ.get("AGENTKIT_KIND", "service"),
            log_format=environ.get("AGENTKIT_LOG_FORMAT", "auto"),
            log_level=environ.get("AGENTKIT_LOG_LEVEL", "INFO").upper(),
        )

    @classmethod
    def _checked(cls, **values: Any) -> Self:
        """The settings; ConfigError naming the variable that pydantic refuses."""
        try:
            return cls(**values)
        except ValidationError as exc:
            error = exc.errors(include_url=False, include_context=False)[0]
            field, *path = map(str, error["loc"])
            at = ".".join((_VARIABLES.get(field, field), *path))
            if field == "secrets":  # a value where a reference belongs must not land in a log
                raise ConfigError(at=at, got="something else", want='{"file": PATH} or {"env": NAME}') from None
            raise ConfigError(at=at, got=error["input"], want=error["msg"]) from exc

    @property
    def sender(self) -> dict[str, Any]:
        """Whose reports these are, as a node wants to know it."""
        return {"id": str(self.id), "incarnation": int(self.incarnation)}

    def check_binding(self, handed_down: Mapping[str, str] | None = None) -> None:
        """ConfigError when it would listen to strangers without anybody having said so.

        `handed_down`: address by name of each listening socket that somebody else bound, a node or systemd."""
        if self.security != "loopback":
            return
        places = {"AGENT_HOST": self.host} | {f"socket {name}": host for name, host in (handed_down or {}).items()}
        for place, host in places.items():
            if is_loopback(host):
                continue
            raise ConfigError(
                at=place,
                got=host,
                want="a loopback address, as there are no keys",
                fix="set AGENTKIT_SECURITY=curve if this machine has keys (`agentkit keys init`), or AGENTKIT_SECURITY=none to listen to "
                "everybody without encryption",
            )

    def is_encrypted(self, host: str) -> bool:
        """Whether what listens on `host` takes known keys only."""
        return self.security == "curve" and (self.encrypts_loopback or not is_loopback(host))

    def read_state_url(self) -> str:
        """The address of its Redis. ConfigError: none is given, or it can't be read."""
        if self.state_url is None:
            raise ConfigError(at=STATE_URL, got=None, want="the address of a Redis, as AGENTKIT_STATE_STORE is redis")
        return _read_secret(STATE_URL, self.state_url)

    def read_secrets(self) -> dict[str, str]:
        """The secrets' values; ConfigError says which one can't be read, and never what is in it."""
        return {name: _read_secret(name, source) for name, source in self.secrets.items()}


def _read_secret(name: str, source: SecretSource) -> str:
    if source.env is not None:
        if source.env not in os.environ:
            raise ConfigError(at=f"secrets.{name}", got=f"${source.env}, which is not set", want="a variable that is")
        return os.environ[source.env]
    try:
        return Path(source.file or "").read_text().rstrip("\n")
    except OSError as exc:
        raise ConfigError(at=f"secrets.{name}", got=f"{source.file}: {exc}", want="a readable text file") from exc
    except UnicodeDecodeError:
        # without the cause: it quotes what is in the file
        raise ConfigError(at=f"secrets.{name}", got=f"{source.file}, which is not UTF-8", want="a text file") from None


def _default_data_dir(environ: Mapping[str, str], machine: str, name: str) -> Path:
    root = environ.get("AGENTKIT_STATE_DIR") or str(Path(environ.get("HOME", "/")) / ".local/state/agentkit")
    return Path(root) / "by-hand" / machine / "data" / name


def _integer(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(at=variable, got=text, want="a whole number, 0 or more")
    return int(text)


def _policy(given: Mapping[str, Any]) -> CheckPolicy:
    try:
        return CheckPolicy(**given)
    except TypeError as exc:
        want = "an object with interval_s, timeout_s and retries, numbers all"
        raise ConfigError(at="AGENTKIT_HEALTH", got=dict(given), want=want, fix=str(exc)) from exc


def _number(environ: Mapping[str, str], variable: str, default: float) -> float:
    text = environ.get(variable, "")
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise ConfigError(at=variable, got=text, want="a number") from None


def _json(environ: Mapping[str, str], variable: str) -> dict[str, Any]:
    text = environ.get(variable, "")
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise ConfigError(at=variable, got=text[:80], want=f"a JSON object ({exc})") from exc
    if not isinstance(value, dict):
        raise ConfigError(at=variable, got=text[:80], want="a JSON object")
    return value
