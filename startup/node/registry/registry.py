"""Consul on a node's side: this machine's rows go there, other machines' agents come from there into the table.

A fleet that keeps its directory in the mesh has an object here and nothing else: no thread, no connection, no import.
Where another machine's node is heard, its own word counts (table.py); Consul's is for the others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentkit._version import VERSION
from agentkit.clock import now_s
from agentkit.names import AgentId
from agentkit.observe.log import get_logger
from startup.node.table import ClusterTable
from startup.plan.phase import Health, Phase
from startup.plan.row import AgentRow
from startup.plan.sighted import sighted
from startup.spec.fleet import AgentSpec, ConsulAccess, Fleet, SecretRef

if TYPE_CHECKING:  # imported when a fleet wants them: 60 ms and 6 MB with python-consul
    from agentkit.directory.consul import ConsulClient
    from agentkit.directory.registering import Wanted
    from agentkit.directory.sightings import Sightings
    from startup.node.registry.lookout import Lookout, Seen
    from startup.node.registry.registrar import Registrar

log = get_logger("node.registry")

#: An agent that is told to go waits so long for Consul to know, in seconds.
LEAVE_S: Final = 1.0
#: The end of the node waits so long for its agents to be deregistered, in seconds.
CLOSE_S: Final = 3.0
#: Consul has to show an agent that stands there for so long, in seconds, to be believed of others.
SHOWN_AFTER_S: Final = 3.0
#: Phases in which an agent is registered: one that a successor takes over from keeps its entry.
_REGISTERED: Final = frozenset({Phase.READY, Phase.HIBERNATED, Phase.DRAINING})


class Registry:
    """`revised` with each revision, `tell` own rows; `close` ends it."""

    def __init__(self, machine: str, table: ClusterTable, *, on_sighted: Callable[[], None]) -> None:
        """`on_sighted`: Consul has changed what the table shows."""
        self._machine = machine
        self._table = table
        self._on_sighted = on_sighted
        self._loop = asyncio.get_running_loop()
        self._side: _Consul | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def revised(self, fleet: Fleet) -> None:
        """Begin, go on, begin anew with other settings, or end, as the fleet says."""
        wanted = (fleet.cluster, fleet.consul)
        if self._side is not None and self._side.settings != wanted:
            # where the next one speaks with the same Consul, it goes on with what stands there
            is_same_place = fleet.consul is not None and _place(wanted) == _place(self._side.settings)
            self._end(self._side, deregister=not is_same_place)
            self._side = None
            self._sighted({})
        if self._side is None and fleet.consul is not None:
            try:
                self._side = _Consul(self._machine, fleet.cluster, fleet.consul, self._sighted)
            except (OSError, ImportError) as exc:
                log.error(
                    "consul.unusable",
                    error=str(exc),
                    hint="agents are not registered; the nodes' own directory goes on",
                )
                return
            log.info("consul.begun", address=fleet.consul.address, service=f"agentkit-{fleet.cluster}")
        if self._side is not None:
            self._side.specs = {spec.id: spec for spec in fleet.on(self._machine)}
            self.tell(self._table.of_machine(self._machine))

    def tell(self, own: Iterable[AgentRow]) -> None:
        """Rows of this machine that have changed."""
        if self._side is not None:
            self._side.tell(own)

    def leaving(self, id: AgentId) -> Awaitable[None] | None:
        """What to wait for before an agent is told to go; None: nothing."""
        return None if self._side is None else self._side.leave(id)

    @property
    def reached(self) -> frozenset[str]:
        """Machines of which Consul shows an agent that passes."""
        return frozenset() if self._side is None else self._side.machines()

    def facts(self) -> dict[str, Any] | None:
        """For `status`; None: the fleet does without."""
        return None if self._side is None else self._side.facts()

    async def close(self, *, deregister: bool) -> None:
        side, self._side = self._side, None
        if side is not None:
            self._end(side, deregister=deregister)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _sighted(self, rows: Mapping[AgentId, AgentRow]) -> None:
        self._table.sight(rows)
        self._on_sighted()

    def _end(self, side: _Consul, *, deregister: bool) -> None:
        task = self._loop.create_task(side.close(deregister=deregister), name="consul:close")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class _Consul:
    """One Consul, with the threads that speak with it."""

    def __init__(
        self,
        machine: str,
        cluster: str,
        access: ConsulAccess,
        on_rows: Callable[[Mapping[AgentId, AgentRow]], None],
    ) -> None:
        from agentkit.directory.sightings import Sightings
        from startup.node.registry.lookout import Lookout
        from startup.node.registry.registrar import Registrar

        self.settings = (cluster, access)
        self.specs: dict[AgentId, AgentSpec] = {}
        self._machine = machine
        self._cluster = cluster
        self._on_rows = on_rows
        self._loop = asyncio.get_running_loop()
        self._sightings: Sightings = Sightings()
        self._rows: dict[AgentId, AgentRow] = {}
        self._strangers = 0
        self._is_closed = False
        first, second = client_of(access), client_of(access)
        self._registrar: Registrar = Registrar(
            first, cluster, self._machine, ready_check_s=access.ready_check_s, on_trouble=self._troubled
        )
        self._lookout: Lookout = Lookout(second, cluster, on_seen=self._seen, on_trouble=self._lost_sight)
        self._clients: tuple[ConsulClient, ...] = (first, second)
        self._registrar.start()
        self._lookout.start()

    # -- what is told

    def tell(self, own: Iterable[AgentRow]) -> None:
        self._registrar.want({row.id: self._wanted(row) for row in own})

    def _wanted(self, row: AgentRow) -> Wanted | None:
        from agentkit.directory.entries import Entry
        from agentkit.directory.registering import Wanted

        spec = self.specs.get(row.id)
        is_asleep = row.phase is Phase.HIBERNATED or bool(row.sleep.get("is_waking"))
        if spec is None or not (row.phase in _REGISTERED or is_asleep) or not row.endpoints:
            return None
        entry = Entry(
            cluster=self._cluster,
            id=row.id,
            incarnation=row.incarnation,
            endpoints=row.endpoints,
            phase="hibernated" if is_asleep else "ready",
            health_url=row.health_url,
            group=row.group,
            klass=spec.klass,
            version=VERSION,
            methods={"timeouts_s": row.timeouts_s, "traits": row.traits},
        )
        # Degraded agents take calls. Failing ones should not, but are not dead: `critical` would have them deregistered
        return Wanted(entry, "warning" if row.health is Health.FAILING else "passing")

    def leave(self, id: AgentId) -> Awaitable[None] | None:
        future = self._registrar.leave(id)
        return None if future.done() else self._left(asyncio.wrap_future(future))

    async def _left(self, future: asyncio.Future[None]) -> None:
        await asyncio.wait((future,), timeout=LEAVE_S)

    # -- what is heard (on the threads)

    def _seen(self, seen: Seen) -> None:
        self._call(self._take, seen)

    def _lost_sight(self) -> None:
        self._registrar.look_again()
        self._troubled()

    def _troubled(self) -> None:
        self._call(lambda: self._sightings.trouble(now_s()))

    def _call(self, what: Callable[..., None], *arguments: Any) -> None:
        if not self._is_closed:
            self._loop.call_soon_threadsafe(what, *arguments)

    # -- what is made of it

    def _take(self, seen: Seen) -> None:
        if self._is_closed:
            return
        now = now_s()
        if seen.is_troubled:
            self._sightings.trouble(now)
        ours = {id for id, since_s in self._registrar.confirmed.items() if now - since_s > SHOWN_AFTER_S}
        others = {id: entry for id, entry in seen.passing.items() if id.machine != self._machine}
        change = self._sightings.see(others, now, misses_ours=bool(ours - seen.passing.keys()))
        self._lookout.is_in_doubt = self._sightings.is_in_doubt
        self._lookout.known = frozenset(self._sightings.known)
        if seen.strangers and seen.strangers != self._strangers:
            log.warning("consul.strangers", service=f"agentkit-{self._cluster}", entries=seen.strangers)
        self._strangers = seen.strangers
        for entry in change.seen:
            self._rows[entry.id] = sighted(entry)
        for id in change.gone:
            del self._rows[id]
        if change.seen or change.gone:
            self._on_rows(self._rows)

    def machines(self) -> frozenset[str]:
        return frozenset(id.machine for id in self._sightings.known)

    def facts(self) -> dict[str, Any]:
        return {
            "address": self.settings[1].address,
            "problem": self._registrar.problem or self._lookout.problem,
            "registered": len(self._registrar.confirmed),
            "seen": len(self._sightings.known),
            "in_doubt": self._sightings.is_in_doubt,
            "strangers": self._strangers,
            "calls": sum(client.calls for client in self._clients),
        }

    async def close(self, *, deregister: bool) -> None:
        self._is_closed = True
        self._lookout.close()
        self._registrar.close(deregister=deregister)
        await self._loop.run_in_executor(None, self._registrar.join, CLOSE_S)
        await self._loop.run_in_executor(None, self._lookout.join, CLOSE_S)


def _place(settings: tuple[str, ConsulAccess | None]) -> tuple[str, str]:
    cluster, access = settings
    return cluster, access.address if access else ""


def client_of(access: ConsulAccess) -> ConsulClient:
    """A client as the fleet file has it. OSError: a certificate can't be read; ImportError: python-consul is not installed."""
    from agentkit.directory.consul import ConsulClient, Tls

    tls = Tls(ca=_path(access.ca), cert=_path(access.cert), key=_path(access.key)).context() if access.tls else None
    token = access.token
    return ConsulClient(access.address, token=lambda: _secret(token), datacenter=access.datacenter, tls=tls)


def _path(text: str | None) -> str | None:
    return None if text is None else str(Path(text).expanduser())


def _secret(ref: SecretRef | None) -> str | None:
    """The token, read anew each time: one that was revoked is replaced by writing another into the file."""
    if ref is None:
        return None
    if ref.env is not None:
        return os.environ.get(ref.env)
    try:
        return Path(ref.file or "").expanduser().read_text().strip()
    except (OSError, ValueError):
        return None
