"""What the `config` of this machine's agents is, beyond the fleet file, and who is told when it changes.

    watch_config {id incarnation}                 goes on telling: `{number config over}` when the process shall take another config
    config_taken {id incarnation number error}    it has; or why not

A process is told when the reconciler offers it another spec's config (plan/reconfigure.py), and when Consul's KV store has another word
over it (plan/overrides.py). The first, refused, becomes a restart; the second is refused and reported, and the old one stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from startup.errors import Refused
from startup.node.config_source import ConfigSource
from startup.node.control_server import Asker, Telling
from startup.node.paths import Places
from startup.node.turns import Turns
from startup.plan import reconfigure
from startup.plan.process import Process
from startup.spec.fleet import AgentSpec, Fleet

log = get_logger("node.configs")

#: A process that was offered a config has so long to connect and to answer, in seconds: its own limit is 10 s.
ANSWER_S: Final = 15.0

_Life: TypeAlias = tuple[AgentId, Incarnation]


@dataclass(frozen=True, slots=True)
class _Offer:
    number: int
    spec: AgentSpec | None  #: None: only Consul's word has changed
    timer: asyncio.TimerHandle | None


class Configs:
    """One for a node."""

    def __init__(self, turns: Turns, places: Places, is_running: Callable[[AgentId, Incarnation], bool]) -> None:
        self._turns = turns
        self._core = turns.core
        self._is_running = is_running
        self._loop = asyncio.get_running_loop()
        self._ears: dict[_Life, tuple[Asker, int]] = {}
        self._offers: dict[_Life, _Offer] = {}
        self._number = 0
        self._source = ConfigSource(places, self._changed)

    # -- a node's life

    def revised(self, fleet: Fleet) -> None:
        self._source.revised(fleet)

    async def close(self) -> None:
        for offer in self._offers.values():
            if offer.timer is not None:
                offer.timer.cancel()
        await self._source.close()

    # -- for the next process

    async def known(self) -> None:
        """What Consul says has been read, or it takes too long to be waited for."""
        await self._source.known()

    def over(self, id: AgentId) -> Mapping[str, Any]:
        return self._source.overrides.get(str(id.name), {})

    # -- for those that run

    def offer(self, id: AgentId, incarnation: Incarnation) -> None:
        """plan.actions.Configure."""
        p = self._core.processes[id]
        if p.offered is not None:
            life = (id, incarnation)
            timer = self._loop.call_later(ANSWER_S, self._late, life, self._number + 1)
            self._ask(life, p.offered, timer)

    @property
    def operations(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        return {"config_taken": self._taken}

    @property
    def telling(self) -> Mapping[str, Callable[[Asker, int, Mapping[str, Any]], Telling]]:
        return {"watch_config": self._watch}

    def _watch(self, asker: Asker, number: int, said: Mapping[str, Any]) -> Telling:
        life = _life(said)
        if not self._is_running(*life):
            raise Refused("gone", f"{life[0]} of incarnation {life[1]} is not wanted any more")
        self._ears[life] = (asker, number)
        if life in self._offers and self._offers[life].spec is not None:
            self._tell(life)
        elif self._spec_of(life) is not None:
            self._ask(life, None, None)  # Consul's word may have changed while it was not heard

        def stop() -> None:
            if self._ears.get(life) == (asker, number):
                del self._ears[life]
                if life in self._offers and self._offers[life].spec is None:
                    del self._offers[life]  # the next conversation begins with Consul's word anyway

        return Telling(stop)

    def _ask(self, life: _Life, spec: AgentSpec | None, timer: asyncio.TimerHandle | None) -> None:
        before = self._offers.get(life)
        if before is not None and before.timer is not None:
            before.timer.cancel()
        self._number += 1
        self._offers[life] = _Offer(self._number, spec, timer)
        self._tell(life)

    def _tell(self, life: _Life) -> None:
        offer, ear = self._offers[life], self._ears.get(life)
        spec = offer.spec or self._spec_of(life)
        if ear is not None and spec is not None:
            asker, number = ear
            asker.tell(number, {"number": offer.number, "config": dict(spec.config), "over": dict(self.over(life[0]))})

    def _taken(self, said: Mapping[str, Any]) -> dict[str, Any]:
        self._answered(_life(said), int(said["number"]), str(said.get("error") or "")[:500])
        return {}

    def _late(self, life: _Life, number: int) -> None:
        self._answered(life, number, f"no answer within {ANSWER_S:g} s")

    def _answered(self, life: _Life, number: int, error: str) -> None:
        offer = self._offers.get(life)
        if offer is None or offer.number != number:
            return
        del self._offers[life]
        if offer.timer is not None:
            offer.timer.cancel()
        id, incarnation = life
        if error:
            log.warning("config.refused", agent=str(id), error=error, restarts=offer.spec is not None)
        if offer.spec is None:
            return
        if not error:
            log.info("config.taken", agent=str(id))
        now_s = self._turns.now_s()
        self._core.on(id, partial(_outcome, offer.spec, error), now_s, incarnation=incarnation)
        self._core.look_again(now_s)
        self._turns.soon()

    def _changed(self, names: frozenset[str]) -> None:
        """Consul says something else over the config of these agents."""
        for life in tuple(self._ears):
            if life[0].name in names:
                offer = self._offers.get(life)
                if offer is not None and offer.spec is not None:
                    self._tell(life)  # with the same number: it answers for the last that it hears
                else:
                    self._ask(life, None, None)

    def _spec_of(self, life: _Life) -> AgentSpec | None:
        """What a process is known to run with."""
        id, incarnation = life
        p = self._core.processes.get(id)
        if p is not None and p.incarnation != incarnation and p.swap is not None:
            p = p.swap.beside
        return p.spec if p is not None and p.incarnation == incarnation and not p.digest else None


def _outcome(spec: AgentSpec, error: str, p: Process) -> Process:
    return reconfigure.refused(p, spec, error) if error else reconfigure.taken(p, spec)


def _life(said: Mapping[str, Any]) -> _Life:
    return AgentId.parse(said["id"]), Incarnation(int(said["incarnation"]))
