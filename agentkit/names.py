"""Names of things in a cluster: agents, machines, incarnations. No I/O, no imports from agentkit above errors."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, NamedTuple, NewType
from urllib.parse import urlsplit

from agentkit.errors import ConfigError

AgentName = NewType("AgentName", str)
MachineName = NewType("MachineName", str)

#: A number from the node's persisted counter, new for every fork of an agent: tells two lives of one AgentId apart.
Incarnation = NewType("Incarnation", int)

#: What a name of an agent, machine, group or cluster may look like. Slashes and hashes separate the parts of an AgentId.
NAME_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,99}")


class AgentId(NamedTuple):
    """Identity of one agent slot in a cluster; written `machine/name#slot`, with `#slot` left out when it is 0.

    It owns ports, state and log. It survives restarts; an Incarnation does not."""

    machine: MachineName
    name: AgentName
    slot: int = 0

    def __str__(self) -> str:
        return f"{self.machine}/{self.instance}"

    @property
    def instance(self) -> str:
        """`name#slot`, or just `name` for slot 0: what AGENT_INSTANCE and the JSON outputs hold."""
        return f"{self.name}#{self.slot}" if self.slot else str(self.name)

    @classmethod
    def parse(cls, text: str) -> AgentId:
        """Read `machine/name` or `machine/name#slot`; ConfigError when it is neither."""
        machine, slash, instance = text.partition("/")
        name, hash_, slot = instance.partition("#")
        well_formed = (
            slash and is_name(machine) and is_name(name) and (not hash_ or (slot.isascii() and slot.isdigit()))
        )
        if not well_formed:
            raise ConfigError(
                at="agent id", got=text, want="machine/name or machine/name#slot", fix="write it as `status` prints it"
            )
        return cls(MachineName(machine), AgentName(name), int(slot or 0))


def is_name(text: str) -> bool:
    """Whether `text` may name an agent, machine, group or cluster."""
    return NAME_PATTERN.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or a name."""
    if host in ("localhost", "127.0.0.1"):
        return True  # nearly always: each agent asks at its start, and ipaddress would be 30 pages that its fork copies
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_beyond_loopback(endpoint: str) -> bool:
    """Whether `endpoint` ("tcp://host:port") may be another machine's."""
    host = urlsplit(endpoint).hostname
    return endpoint.startswith("tcp://") and not is_loopback(host or "")


def matching(wanted: str, known: Iterable[AgentId], *, here: str | None = None) -> tuple[AgentId, ...]:
    """The ids that `wanted` means: the one rule for dependencies, `peer()`, the CLI and `Client`.

    `wanted` is `name`, `name#slot`, `machine/name` or `machine/name#slot`. Without a machine, the agent on machine
    `here` is meant when there is one, else the one on the only machine that has it. All slots of a name are meant unless
    one is written. Returns () when there is none; ids of more than one machine mean that the name is ambiguous."""
    machine, slash, instance = wanted.rpartition("/")
    name, hash_, slot = instance.partition("#")
    found = tuple(
        id
        for id in known
        if id.name == name and (not slash or id.machine == machine) and (not hash_ or str(id.slot) == slot)
    )
    local = tuple(id for id in found if id.machine == here)
    return local or found
