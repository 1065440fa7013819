"""What the fleet file says of machines, and of what they find and trust each other by: SSH, externals, mesh, keys, Consul."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from startup.spec.fields import Duration, Model, Port, SecretModel, Size
from startup.spec.resources_model import PoolModel
from startup.spec.units import refuse


class SshModel(Model):
    user: str | None = Field(None, description="Who to log in as; default: the operator's own name.")
    port: Port = Field(22, description="Of its sshd.")
    key: str | None = Field(None, description="File of the private key.")
    known_hosts: str | None = Field(
        None, description="File that its host key is checked against; default: ~/.ssh/known_hosts."
    )
    jump: str | None = Field(
        None, pattern=r"^([^@\s]+@)?[^@:\s]+(:\d{1,5})?$", description="[user@]host[:port] of a machine to go through."
    )


class MachineModel(Model):
    host: str = Field("127.0.0.1", description="Address or name that the other machines reach it by.")
    node_port: Port | None = Field(
        None, description="Where its node listens for other nodes; on a local machine it may be left out."
    )
    ssh: SshModel | None = Field(
        None, description="How its node is started from elsewhere; left out and host is local: started here."
    )
    python: str | None = Field(None, description="Interpreter there; default: the one that runs agentkit here.")
    workdir: str | None = Field(
        None,
        description="Working directory of its processes; default: project_root. On another host, also where the project lies.",
    )
    pools: dict[str, PoolModel] = Field(
        default_factory=dict, description="Class -> its pool here, where that is another than the file's `pools`."
    )
    memory_budget: Size | None = Field(
        None, gt=0, description="As the file's `memory_budget`, for this machine; left out: that one."
    )


class ExternalModel(Model):
    tcp: str | None = Field(None, description="host:port that has to accept a connection.")
    http: str | None = Field(None, description="URL that has to answer with 2xx.")

    @model_validator(mode="after")
    def _one_probe(self) -> ExternalModel:
        if (self.tcp is None) == (self.http is None):
            raise refuse("{tcp: 'host:port'} or {http: URL}")
        if self.tcp is not None:
            host, colon, port = self.tcp.rpartition(":")
            if not (host and colon and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
                raise refuse("host:port", "write tcp: 'HOST:PORT' with a port within 1-65535")
        return self


class MeshModel(Model):
    suspect: Duration = Field(
        3.0, gt=0, description="A machine that has not answered for so long is looked at closely."
    )
    unreachable: Duration = Field(
        10.0, gt=0, description="... and for so long counts as out of reach: what runs there gets no calls."
    )

    @model_validator(mode="after")
    def _in_order(self) -> MeshModel:
        if self.suspect >= self.unreachable:
            raise refuse("suspect below unreachable", "suspect: 3s, unreachable: 10s are the defaults")
        return self


def _part(value: object) -> object:
    """`N` or `P%`, as text."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    number = text.removesuffix("%") if isinstance(text, str) else ""
    if not (number.isascii() and number.isdigit() and len(number) <= 6 and int(number) >= 1):
        raise refuse("a number of agents from 1 on, or a part of them such as 25%")
    if text != number and int(number) > 100:
        raise refuse("at most 100%")
    return text


class RolloutModel(Model):
    max_unavailable: Annotated[str, BeforeValidator(_part)] = Field(
        "1",
        description="So many of the agents that change are being replaced at a time: a number, or a part such as 25%.",
    )
    rollback: bool = Field(
        True, description="When one does not become ready, those that changed already go back; false: they stay."
    )


def _absolute(value: str) -> str:
    if not value.startswith(("/", "~")):
        raise refuse(
            "an absolute path, or one below ~", "it is a folder of each machine, and the node's own folder is /"
        )
    return value


class KeysModel(Model):
    keys: Annotated[str, AfterValidator(_absolute)] = Field(
        "~/.config/agentkit/keys", description="Folder of this cluster's CURVE keys, on each machine (`agentkit keys`)."
    )
    local: Literal["curve"] | None = Field(None, description="curve: loopback connections are encrypted too.")


class ConsulTlsModel(Model):
    ca: str | None = Field(None, description="File of the authorities to trust; default: the system's.")
    cert: str | None = Field(None, description="File of the certificate to show.")
    key: str | None = Field(None, description="File of its private key.")

    @model_validator(mode="after")
    def _cert_and_key(self) -> ConsulTlsModel:
        if (self.cert is None) != (self.key is None):
            raise refuse("`cert` and `key` together, or neither")
        return self


def _consul_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535 and "/" not in host):
        raise refuse("host:port", "write address: 'HOST:PORT'; for https add `tls: {}`")
    return value


class ConsulModel(Model):
    address: Annotated[str, AfterValidator(_consul_address)] = Field(
        "127.0.0.1:8500", description="host:port of the Consul agent of each machine."
    )
    token: SecretModel | None = Field(None, description="ACL token: {file: PATH} or {env: NAME}, read on each machine.")
    datacenter: str | None = Field(None, max_length=64, description="Left out: the Consul agent's own.")
    tls: ConsulTlsModel | None = Field(None, description="https; {}: with the system's authorities.")
    ready_check: Duration = Field(0.0, description="Consul itself also asks each agent's /ready so often; 0: never.")
    config_prefix: str | None = Field(
        None,
        pattern="^[^/].*[^/]$",
        max_length=200,
        description="Keys below PREFIX/AGENT/ say something over the agents' `config`; left out: none are read.",
    )
    leader_ttl: Duration = Field(
        15.0, ge=10.0, le=3600.0, description="A leader whose machine is gone is followed after one or two of these."
    )
