"""A resolved fleet with another number of slots for some agents, as an operator said it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from agentkit.errors import ConfigError
from agentkit.names import AgentId, is_loopback
from startup.spec.assign import config_ports
from startup.spec.fleet import AgentSpec, Dependency, Fleet, ReadyWhen
from startup.spec.hosts import LOOPBACK
from startup.spec.ports import Claim, PortBook, PortPair
from startup.spec.units import PortRange

#: As in the fleet file.
MAX_SLOTS: Final = 1000


def slots_of(id: AgentId) -> str:
    """What all slots of an agent on a machine have in common: machine/name."""
    return f"{id.machine}/{id.name}"


def scaled(fleet: Fleet, numbers: Mapping[str, int], previous: Mapping[AgentId, PortPair]) -> Fleet:
    """`fleet` with so many slots (by machine/name; 1 to MAX_SLOTS). Names that it does not have mean nothing.

    A new slot is what slot 0 is, on the ports that it had in `previous` if they are free, else on the next free ones of its class.
    ConfigError: there are none."""
    first = {slots_of(spec.id): spec for spec in fleet.agents if spec.id.slot == 0}
    numbers = {agent: number for agent, number in numbers.items() if agent in first}
    if not numbers:
        return fleet
    giver = _Giver(fleet, previous)
    agents: list[AgentSpec] = []
    last = {slots_of(spec.id): spec.id for spec in fleet.agents}
    for spec in fleet.agents:
        number = numbers.get(slots_of(spec.id))
        if number is None or spec.id.slot < number:
            agents.append(spec)
        if number is not None and spec.id == last[slots_of(spec.id)]:
            agents += [giver.slot(first[slots_of(spec.id)], slot) for slot in range(spec.id.slot + 1, number)]
    return replace(fleet, agents=tuple(_rewired(spec, numbers) for spec in agents))


def _rewired(spec: AgentSpec, numbers: Mapping[str, int]) -> AgentSpec:
    """Whoever depends on all slots of an agent depends on those that there are."""
    dependencies = tuple(_rewired_one(it, numbers) for it in spec.dependencies)
    return spec if dependencies == spec.dependencies else replace(spec, dependencies=dependencies)


def _rewired_one(dependency: Dependency, numbers: Mapping[str, int]) -> Dependency:
    if "#" in dependency.name:  # this slot, and no other
        return dependency
    ids: dict[AgentId, None] = {}
    for id in dependency.agents:
        number = numbers.get(slots_of(id))
        ids.update(dict.fromkeys([id] if number is None else (replace_slot(id, slot) for slot in range(number))))
    return replace(dependency, agents=tuple(ids))


def replace_slot(id: AgentId, slot: int) -> AgentId:
    return AgentId(id.machine, id.name, slot)


class _Giver:
    """Gives new slots their ports."""

    def __init__(self, fleet: Fleet, previous: Mapping[AgentId, PortPair]) -> None:
        self._hosts = {str(it.name): LOOPBACK if is_loopback(it.host) else it.host for it in fleet.machines}
        self._ranges = {klass: PortRange(*ends) for klass, ends in fleet.port_ranges.items()}
        self._previous = previous
        self._book = PortBook(_claims(fleet, self._hosts), never=fleet.forbidden_ports)

    def slot(self, first: AgentSpec, slot: int) -> AgentSpec:
        id = replace_slot(first.id, slot)
        had = self._previous.get(id, (None, None))
        port = self._port(first, first.port, had[0])
        health_port = None if first.health_port is None else self._port(first, first.health_port, had[1])
        return replace(first, id=id, port=port, health_port=health_port, ready=_ready(first, port))

    def _port(self, first: AgentSpec, of_first: int, had: int | None) -> int:
        host, wanted = self._hosts[first.machine], self._ranges.get(first.klass)
        if had is not None and wanted is not None and wanted.has(had) and self._book.is_free(host, had):
            port: int | None = had
        else:
            port = self._book.lowest_free(host, wanted, above=of_first) if wanted is not None else None
        if port is None:
            found = f"no free port left in {wanted}" if wanted is not None else "no range of ports"
            raise ConfigError(
                at=f"scale {first.id}", got=f"{found}, class `{first.klass}`", want="a port for each slot",
                fix="widen the range in `port_ranges`, and `agentkit apply` the file",
            )  # fmt: skip
        self._book.add(Claim(host=host, port=port, owner=first.id, what="port"))
        return port


def _ready(first: AgentSpec, port: int) -> ReadyWhen:
    """A probe of its own port, where slot 0 has one of its."""
    ready = first.ready
    if ready.tcp_port == first.port:
        return replace(ready, tcp_port=port)
    own = f"http://127.0.0.1:{first.port}/"
    if ready.http_url is not None and ready.http_url.startswith(own):
        return replace(ready, http_url=f"http://127.0.0.1:{port}/{ready.http_url.removeprefix(own)}")
    return ready


def _claims(fleet: Fleet, hosts: Mapping[str, str]) -> Iterator[Claim]:
    for machine in fleet.machines:
        if machine.node_port is not None:
            yield Claim(
                host=hosts[machine.name], port=machine.node_port, owner=f"node of {machine.name}", what="node port"
            )
    for spec in fleet.agents:
        ports = {*spec.ports, *(port for _, port in config_ports(dict(spec.config)))}
        for port in sorted(ports):
            yield Claim(host=hosts[spec.machine], port=port, owner=spec.id, what="port")
