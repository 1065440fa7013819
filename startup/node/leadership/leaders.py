"""Leaders among the agents of this machine, told over their connections. Who leads is decided by plan/elections.py, and by whoever has the
locks of names: this node alone (`registry: mesh`), or Consul for all nodes.

    lead {name id incarnation claims}      goes on telling: `{fence until_s}` when it is elected, `{until_s}` later, `{lost: why}`
    resign {name id incarnation fence}     it leads no more; or does not want to any more

A term is written down before its leader hears of it, so that the next node knows it: in the run directory, because a term ends with its
process, and that with the machine. The greatest fences that were seen in Consul stand in the state directory, for when Consul forgets
them. `until_s` is on the machine's monotonic clock, which all its processes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgpack

from agentkit.errors import BadRequest
from agentkit.names import AgentId, Incarnation, is_name
from agentkit.observe.log import get_logger
from startup.errors import Refused
from startup.node.control_server import Asker, Telling
from startup.node.leadership.locks import RETRY_S, Fences, Locks, OwnLocks
from startup.node.paths import Places, write_atomically
from startup.node.store import Incarnations
from startup.plan.elections import Candidate, Deed, Elected, Elections, Lost, Release, Unwant, Want
from startup.spec.fleet import ConsulAccess, Fleet

if TYPE_CHECKING:  # imported when a fleet with Consul has its first candidate
    from startup.node.leadership.consul_locks import ConsulLocks

log = get_logger("node.leaders")

#: Names that agents of one machine can ask for: whatever they do, the file stays small.
MAX_NAMES: Final = 1000


class Leaders:
    """One for a node."""

    def __init__(
        self, places: Places, incarnations: Incarnations, is_running: Callable[[AgentId, Incarnation], bool]
    ) -> None:
        """`is_running`: whether a process is one that this node looks after."""
        self._file = places.run / "leaders"
        self._fences = Fences(places.state / "fences")
        self._machine = places.machine
        self._is_running = is_running
        self._loop = asyncio.get_running_loop()
        self._elections = Elections()
        self._ears: dict[tuple[str, Candidate], tuple[Asker, int]] = {}
        self._own = OwnLocks(incarnations, self._got)
        self._consul: ConsulLocks | None = None
        self._session = ""  # with Consul, of the node before
        self._fleet: Fleet | None = None
        self._warned: set[str] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._ending: list[asyncio.Future[Any]] = []

    # -- a node's life

    def begin(self) -> None:
        """What an earlier node had elected leads on if it is still there. After processes were adopted, before anybody can ask."""
        try:
            kept = msgpack.unpackb(self._file.read_bytes())
            self._session = str(kept["session"])
            for name, (id, incarnation, fence) in kept["terms"].items():
                candidate = Candidate(AgentId.parse(id), Incarnation(incarnation))
                if self._is_running(*candidate):
                    self._elections.resume(name, candidate, fence)
                    log.info("leader.resumed", leader=name, agent=id, fence=fence)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.error("leaders.forgotten", file=str(self._file), error=repr(exc))

    def revised(self, fleet: Fleet) -> None:
        """Where locks come from may be somewhere else. With the first revision of a node, leaders of the node before go on."""
        before, self._fleet = self._fleet, fleet
        if before is not None and before.consul != fleet.consul:
            self._own.close()
            if self._consul is not None:
                self._ending.append(self._consul.close(lets_go=False))
                self._consul = None
            self._do(self._elections.rebased("the fleet elects its leaders somewhere else now"))
        elif self._elections.held:
            self._locks()

    def ended(self, incarnation: Incarnation) -> None:
        """Nothing of a process is left."""
        self._do(self._elections.ended(incarnation))

    async def close(self, *, lets_go: bool = True) -> None:
        """Nothing of this machine's agents is left: others may lead at once. Not `lets_go`: they lead on, under the next node."""
        self._own.close()
        for timer in self._timers:
            timer.cancel()
        if self._consul is not None:
            self._ending.append(self._consul.close(lets_go=lets_go))
        await asyncio.gather(*self._ending)
        if lets_go:
            self._file.unlink(missing_ok=True)

    def _locks(self) -> Locks | None:
        """None: there is a Consul, and it can't be spoken with: said in the log."""
        if self._fleet is None or self._fleet.consul is None:
            return self._own
        if self._consul is None:
            try:
                self._consul = self._of_consul(self._fleet.cluster, self._fleet.consul)
            except (OSError, ImportError) as exc:
                log.error("leaders.none", error=str(exc), hint="nobody is elected until this node can ask Consul")
        return self._consul

    def _of_consul(self, cluster: str, access: ConsulAccess) -> ConsulLocks:
        from startup.node.leadership.consul_locks import ConsulLocks

        session, self._session = self._session, ""
        held = {name: held.fence for name, held in self._elections.held.items() if not held.is_revoked}
        return ConsulLocks(
            access,
            cluster,
            self._machine,
            session=session,
            held=held,
            fences=self._fences.load(),
            on_got=self._got,
            on_lost=lambda name, why: self._do(self._elections.lost(name, why)),
            on_renewed=self._renewed,
            on_known=self._known,
        )

    def _known(self) -> None:
        assert self._consul is not None
        self._fences.keep(self._consul.fences)

    def _renewed(self) -> None:
        assert self._consul is not None
        event = {"until_s": self._consul.until_s}
        for name, held in self._elections.held.items():
            if not held.is_revoked:
                self._tell(name, held.candidate, event)

    # -- operations

    @property
    def operations(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        return {"resign": self.resign, "leaders": self.told}

    @property
    def telling(self) -> Mapping[str, Callable[[Asker, int, Mapping[str, Any]], Telling]]:
        return {"lead": self.lead}

    def lead(self, asker: Asker, id: int, said: Mapping[str, Any]) -> Telling:
        """Operation `lead`."""
        name, candidate, claims = self._read(said, "claims")
        if not self._is_running(*candidate):
            raise Refused("gone", f"{candidate.id} of incarnation {candidate.incarnation} is not wanted any more")
        if len(self._ears) >= MAX_NAMES and (name, candidate) not in self._ears:
            raise Refused("overloaded", f"agents of this machine ask for {MAX_NAMES} leaders already")
        self._ears[name, candidate] = (asker, id)
        locks = self._locks()
        self._do(self._elections.stands(name, candidate, claims, is_believed=locks is not None and locks.believes))
        self._warn(name, candidate)

        def stop() -> None:
            if self._ears.get((name, candidate)) == (asker, id):
                del self._ears[name, candidate]
                self._do(self._elections.unheard(name, candidate))

        return Telling(stop)

    def resign(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Operation `resign`."""
        name, candidate, _ = self._read(said, "fence")
        self._ears.pop((name, candidate), None)
        self._do(self._elections.resigns(name, candidate))
        return {}

    def told(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Operation `leaders`: who leads on this machine."""
        return {
            "problem": self._consul.problem if self._consul else "",
            "fences": self._consul.fences if self._consul else {},
            "leaders": {
                name: {
                    "id": str(held.candidate.id),
                    "incarnation": int(held.candidate.incarnation),
                    "fence": held.fence,
                    "until_s": self._until_s,
                }
                for name, held in self._elections.held.items()
                if not held.is_revoked
            },
        }

    # -- what comes of it

    def _got(self, name: str, fence: int) -> None:
        self._do(self._elections.got(name, fence))

    def _do(self, deeds: list[Deed]) -> None:
        if any(not isinstance(deed, Want | Unwant) for deed in deeds) and not self._kept():
            deeds = [undone for deed in deeds for undone in self._undone(deed)]
        locks = self._locks() if deeds else None
        for deed in deeds:
            match deed:
                case Want() if locks is None:
                    self._timers.add(self._loop.call_later(RETRY_S, self._do, list[Deed]([deed])))
                case Want(name) if locks is not None:
                    locks.want(name)
                case Unwant(name) if locks is not None:
                    locks.unwant(name)
                case Release(name, fence) if locks is not None:
                    locks.release(name, fence)
                case Elected(name, candidate, fence):
                    log.info("leader.elected", leader=name, agent=str(candidate.id), fence=fence)
                    self._tell(name, candidate, {"fence": fence, "until_s": self._until_s})
                case Lost(name, candidate, why):
                    log.warning("leader.lost", leader=name, agent=str(candidate.id), why=why)
                    self._tell(name, candidate, {"lost": why})

    @property
    def _until_s(self) -> float | None:
        return self._consul.until_s if self._consul is not None else None

    def _undone(self, deed: Deed) -> list[Deed]:
        """Nobody is elected who could not be written down."""
        if not isinstance(deed, Elected):
            return [deed]
        self._timers.add(self._loop.call_later(RETRY_S, self._again, deed.name))
        return self._elections.undone(deed.name)

    def _again(self, name: str) -> None:
        self._do(self._elections.again(name))

    def _kept(self) -> bool:
        """Whether the next node would know who leads."""
        terms = {
            name: (str(held.candidate.id), int(held.candidate.incarnation), held.fence)
            for name, held in self._elections.held.items()
        }
        try:
            write_atomically(
                self._file,
                msgpack.packb({"terms": terms, "session": self._consul.session if self._consul else ""}),
                durable=False,
            )
        except OSError as exc:
            log.error("leaders.not_kept", file=str(self._file), error=str(exc))
            return False
        return True

    def _tell(self, name: str, candidate: Candidate, event: Mapping[str, Any]) -> None:
        if ear := self._ears.get((name, candidate)):
            asker, id = ear
            asker.tell(id, event)

    def _read(self, said: Mapping[str, Any], number: str) -> tuple[str, Candidate, int]:
        name = str(said["name"])
        if not is_name(name):
            raise BadRequest(f"name: got {name[:80]!r}, want a letter, then letters, digits, _ . or -")
        candidate = Candidate(AgentId.parse(said["id"]), Incarnation(int(said["incarnation"])))
        return name, candidate, int(said.get(number) or 0)

    def _warn(self, name: str, candidate: Candidate) -> None:
        """Once for each name: a leader for each machine may not be what was meant."""
        if self._fleet is None or self._fleet.registry != "mesh" or name in self._warned:
            return
        others = sorted(
            {spec.machine for spec in self._fleet.agents if spec.name == candidate.id.name} - {self._machine}
        )
        if others:
            self._warned.add(name)
            log.warning(
                "leader.of_this_machine_only",
                leader=name,
                agent=str(candidate.id),
                also_on=others,
                hint="with `registry: mesh` each machine has a leader of its own; `registry: consul` elects one for all",
            )
