"""Bringing processes about: what a fork is ordered with, what it is handed, and the gate that a successor waits at.

Between an order and the zygote's answer a process may speak, and end, before anybody knows its pid: both are kept here until then."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from random import Random
from typing import Any, Final

from agentkit.errors import AgentkitError
from agentkit.names import AgentId, Incarnation
from startup.node.configs import Configs
from startup.node.doors import Doors
from startup.node.exits import Exit
from startup.node.gates import Gate
from startup.node.limits.bounds import Bounds
from startup.node.orders import NOTHING, fork_order, listening_on, machine_of
from startup.node.paths import Places, own_folder
from startup.node.probes import log_size
from startup.node.running import Running
from startup.node.sockets import AgentSockets
from startup.node.store import Incarnations
from startup.node.turns import Turns
from startup.node.zygote.keeper import ZygoteKeeper
from startup.node.zygote.lending import Lending
from startup.plan import ending, swap, transitions
from startup.plan.process import Outcome, Process
from startup.spec.fleet import AgentSpec, Fleet

#: Reasons for which a fork does not come about and that the operator has to see.
FORK_ERRORS: Final = (AgentkitError, OSError)


class Forks:
    """Those of one node. Owns the gates; sockets, doors and bounds are the executor's."""

    def __init__(
        self,
        turns: Turns,
        places: Places,
        incarnations: Incarnations,
        zygote: ZygoteKeeper,
        *,
        sockets: AgentSockets,
        doors: Doors,
        bounds: Bounds,
        nofile: int,
        random: Random,
        key: Callable[[], str],
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
        on_began: Callable[[Running, bool], None],
        on_ended: Callable[[Exit], None],
    ) -> None:
        """`key`: fingerprint of the key that the next process serves with. `on_began`: a process is there, and whether it is an operator's
        own that was lent its slot. `on_ended`: its end had been told before that."""
        self.lending = Lending()
        self.configs: Configs | None = None  #: what is said over agents' config
        self._turns = turns
        self._core = turns.core
        self._places = places
        self._incarnations = incarnations
        self._zygote = zygote
        self._sockets = sockets
        self._doors = doors
        self._bounds = bounds
        self._nofile = nofile
        self._random = random
        self._key = key
        self._spawn = spawn
        self._on_began = on_began
        self._on_ended = on_ended
        self._gates: dict[Incarnation, Gate] = {}
        self._on_order: set[Incarnation] = set()
        self._ended_early: dict[Incarnation, Exit] = {}

    # -- orders

    def order(self, id: AgentId) -> None:
        """The slot's process."""
        spec = self._core.processes[id].spec
        incarnation, key = self._incarnations.take(), self._key()
        self._core.on(id, lambda p: transitions.ordered(p, incarnation, key), self._turns.now_s())
        self._on_order.add(incarnation)
        self._spawn(self._fork(spec, incarnation, key), f"fork {id}")

    def order_beside(self, id: AgentId, predecessor: Running | None) -> None:
        """A successor: it gets a gate, and its predecessor's pidfd."""
        p = self._core.processes[id]
        assert p.swap is not None
        incarnation, key = self._incarnations.take(), self._key()
        self._core.on(id, lambda p: swap.ordered(p, incarnation, key), self._turns.now_s())
        self._on_order.add(incarnation)
        self._gates[incarnation] = Gate(predecessor.pidfd if predecessor else None)
        self._spawn(self._fork(p.swap.beside.spec, incarnation, key), f"fork beside {id}")

    def is_on_order(self, incarnation: Incarnation) -> bool:
        """Whether nobody knows its pid yet."""
        return incarnation in self._on_order

    def ended_early(self, exit: Exit) -> bool:
        """Whether `exit` is of a process on order: it is told again when that is known to have begun."""
        incarnation = Incarnation(exit.incarnation)
        if incarnation in self._on_order:
            self._ended_early[incarnation] = exit
        return incarnation in self._on_order

    # -- gates

    def open_gate(self, incarnation: Incarnation) -> None:
        """The successor may go on."""
        if gate := self._gates.pop(incarnation, None):
            gate.open()

    def close_gate(self, incarnation: Incarnation) -> None:
        """Nobody waits there any more, or nobody will ever let it pass."""
        if gate := self._gates.pop(incarnation, None):
            gate.close()

    def close(self) -> None:
        """Every gate."""
        for gate in self._gates.values():
            gate.close()

    # -- what a process is handed

    @property
    def fleet(self) -> Fleet:
        """The one that is acted on."""
        revision = self._core.desired.revision
        assert revision is not None
        return revision.fleet

    def listeners(self, spec: AgentSpec) -> Mapping[str, int]:
        """The sockets of its slot by name, opened where they were not. One of FORK_ERRORS: a port is taken; then none is."""
        return self._sockets.open(spec.id, self.addresses(spec))

    def addresses(self, spec: AgentSpec) -> Mapping[str, tuple[str, int]]:
        """Where those of its slot listen, by name."""
        return listening_on(spec, machine_of(self.fleet, spec.machine).host, self.fleet.security)

    async def _over(self, id: AgentId) -> Mapping[str, str]:
        """What is said over its config elsewhere, once it is known, for its environment."""
        if self.configs is None:
            return NOTHING
        await self.configs.known()
        over = self.configs.over(id)
        return {"AGENTKIT_CONFIG_OVER": json.dumps(dict(over))} if over else NOTHING

    async def _fork(self, spec: AgentSpec, incarnation: Incarnation, key: str) -> None:
        id = spec.id
        gate = self._gates.get(incarnation)
        try:
            fds = self.listeners(spec)
            if (user := self._doors.admit(spec)) is None:
                own_folder(self._places.data(id.instance))
            over = await self._over(id)
            admission = self._bounds.prepare(spec, incarnation)
            told = {**(self._doors.environment(spec, user) if user else NOTHING), **over}
            order = fork_order(spec, self.fleet, self._places, incarnation, self._nofile, key, admission, user, told)
            log_start = log_size(order.log_path)
            # who has the longest chain of dependants decides when the last one is ready
            urgency = self._core.desired.heights.get(id, 0)
            loan = None if gate else self.lending.take(id)
            if gate:
                fds = {**fds, **gate.handed_down}
            forked = loan.hand_over(order, fds) if loan else await self._zygote.fork(order, fds, urgency=urgency)
        except FORK_ERRORS as exc:
            self._on_order.discard(incarnation)
            self._bounds.ended(incarnation)
            self.close_gate(incarnation)
            failed = partial(_fork_failed, str(exc), self._turns.now_s(), self._random)
            self._turns.on(id, failed, incarnation=incarnation)
            return
        self._on_order.discard(incarnation)
        if gate:
            gate.was_handed_down()
        self._bounds.began(incarnation, forked.pid)
        self._on_began(Running(id, incarnation, forked.pid, forked.pidfd, log_start), loan is not None)
        early = self._ended_early.pop(incarnation, None)
        if early is not None:
            self._on_ended(early)


def _fork_failed(reason: str, now_s: float, random: Random, p: Process) -> Outcome:
    return ending.fork_failed(p, reason, now_s, random)
