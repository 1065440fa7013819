"""Which ports every slot gets: those written, then those it had before, then the lowest free ones in file order. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from agentkit.names import AgentId
from startup.spec.fleet import AgentTarget, ProgramTarget
from startup.spec.members import Member
from startup.spec.model import ReadyModel
from startup.spec.parse import Parsed
from startup.spec.ports import Claim, PortBook, PortPair
from startup.spec.problem import Problem
from startup.spec.units import PortRange

Target = AgentTarget | ProgramTarget


class PortGiver:
    """Gives each slot its ports: those written, then those it had before, then the lowest free ones in file order."""

    def __init__(
        self,
        parsed: Parsed,
        ranges: Mapping[str, PortRange],
        hosts: Mapping[str, str],
        offset: int,
        previous: Mapping[AgentId, PortPair],
        problems: list[Problem],
    ) -> None:
        self.claims: list[Claim] = []
        self._book = PortBook(never=parsed.file.forbidden_ports)
        self._ranges, self._hosts, self._offset = ranges, hosts, offset
        self._previous, self._problems = previous, problems
        for name, machine in parsed.file.machines.items():
            if machine.node_port is not None:
                table = parsed.settings.get("machines", {}).get(name)
                port = shifted(machine.node_port, table, "node_port", offset)
                place = parsed.settings.place_of("machines", name, "node_port")
                at = f"machines.{name}.node_port"
                self._claim(
                    Claim(host=hosts[name], port=port, owner=f"node of {name}", what="node port", at=at, place=place)
                )

    def given_out(self, members: Iterable[Member], targets: Mapping[AgentId, Target]) -> dict[AgentId, PortPair]:
        """(service, health) of every slot; 0 stands for a port that could not be given."""
        members = tuple(members)
        found: dict[tuple[AgentId, str], int] = {}
        for member in members:
            self._written(member, found)
        wanted = [
            (member, slot, key)
            for member in members
            for slot in range(member.settings.replicas)
            for key in self._keys(member, targets[member.id()])
            if (member.id(slot), key) not in found
        ]
        kept = {(m.id(slot), key): port for m, slot, key in wanted if (port := self._kept(m, slot, key)) is not None}
        for member, slot, key in wanted:
            id = member.id(slot)
            if (id, key) not in kept:
                found[id, key] = self._next(member, key, found.get((member.id(), key)))
                self._claim_slot(member, slot, key, found[id, key])
        found |= kept
        return {
            m.id(slot): (found.get((m.id(slot), "port"), 0), found.get((m.id(slot), "health_check_port")))
            for m in members
            for slot in range(m.settings.replicas)
        }

    def _keys(self, member: Member, target: Target) -> tuple[str, ...]:
        """Programs have a health port only if they say so: they would have to serve it themselves."""
        if isinstance(target, AgentTarget) or member.settings.health_check_port is not None:
            return ("port", "health_check_port")
        return ("port",)

    def _written(self, member: Member, found: dict[tuple[AgentId, str], int]) -> None:
        for key in ("port", "health_check_port"):
            port = getattr(member.settings, key)
            if port is not None:
                found[member.id(), key] = shifted(port, member.entry.keys, key, self._offset)
                self._claim_slot(member, 0, key, found[member.id(), key])
        ready = member.settings.ready
        if isinstance(ready, ReadyModel) and ready.tcp is not None and ready.tcp != member.settings.port:
            port = shifted(ready.tcp, member.entry.keys.get("ready"), "tcp", self._offset)
            self._claim_path(member, port, ("ready", "tcp"))
        for path, port in config_ports(member.entry.keys.get("config", {})):
            self._claim_path(member, port, ("config", *path))

    def _kept(self, member: Member, slot: int, key: str) -> int | None:
        service, health = self._previous.get(member.id(slot), (None, None))
        port = service if key == "port" else health
        wanted = self._ranges.get(member.klass)
        if port is None or wanted is None or not wanted.has(port) or not self._book.is_free(self._host(member), port):
            return None
        self._claim_slot(member, slot, key, port)
        return port

    def _next(self, member: Member, key: str, first: int | None) -> int:
        wanted = self._ranges.get(member.klass)
        at = f"{member.entry.at}.{key}"
        place = str(member.entry.place)
        if wanted is None:
            self._problems.append(
                Problem(
                    check="port-range",
                    place=place,
                    at=at,
                    found=f"no port, and class `{member.klass}` has no range",
                    want="a port",
                )
            )
            return 0
        port = self._book.lowest_free(self._host(member), wanted, above=first)
        if port is None and member.entry.older:  # ranges are no law there
            port = self._book.lowest_free(self._host(member), PortRange(wanted.last + 1, 65535))
        if port is None:
            self._problems.append(
                Problem(
                    check="port-range", place=place, at=at, found=f"no free port left in {wanted}, the range of class `{member.klass}`",
                    want="a port", fix="widen the range in `port_ranges`, or write a port",
                )
            )  # fmt: skip
        return port or 0

    def _host(self, member: Member) -> str:
        return self._hosts[member.machine]

    def _claim_slot(self, member: Member, slot: int, key: str, port: int) -> None:
        if port:
            entry = member.entry
            what = "service port" if key == "port" else "health port"
            place = entry.place_of(key)
            at = f"{entry.at}.{key}"
            self._claim(Claim(host=self._host(member), port=port, owner=member.id(slot), what=what, at=at, place=place))

    def _claim_path(self, member: Member, port: int, path: tuple[str, ...]) -> None:
        self._claim(
            Claim(
                host=self._host(member), port=port, owner=member.id(), what=".".join(path), at=f"{member.entry.at}.{'.'.join(path)}",
                place=member.entry.place_of(*path), from_config=True, binds=path[0] != "config" or is_own_port_key(path[-1]),
            )
        )  # fmt: skip

    def _claim(self, claim: Claim) -> None:
        self.claims.append(claim)
        self._book.add(claim)


#: What stands before `_port` in a config key that names a port the agent binds itself; other words name other services.
_OWN_PORT_WORDS: Final = frozenset(
    {
        "admin", "api", "bind", "debug", "grpc", "health", "health_check", "http", "https", "listen", "metrics", "pub", "pull",
        "push", "rep", "router", "rpc", "server", "service", "stream", "ui", "web", "websocket", "ws", "zmq",
    }
)  # fmt: skip


def is_own_port_key(key: str) -> bool:
    """`port`, `metrics_port`: the agent's own. `redis_port`, `task_manager_port`: somebody else's address."""
    return key == "port" or key.removesuffix("_port") in _OWN_PORT_WORDS


def config_ports(config: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """The ports named in `config`: integers under `port` or `..._port`, unless a host stands beside them."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        stem = key.removesuffix("port")
        if key == "port" or key.endswith("_port"):
            if (
                isinstance(value, int)
                and not isinstance(value, bool)
                and 1 <= value <= 65535
                and f"{stem}host" not in config
            ):
                yield (*path, key), value
        else:
            yield from config_ports(value, (*path, key))


def shifted(port: int, table: Any, key: str, offset: int) -> int:
    """`port` with the operator's offset, unless PORT_OFFSET is in it already."""
    return port if key in getattr(table, "shifted", ()) else port + offset
