"""Doing what was decided: forks, signals, sockets, probes; and telling the reconciler what came of it.

Between a process's exit and the reconciler's hearing of it lies the sweep: "stopped" means that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from agentkit.names import AgentId, Incarnation
from agentkit.observe.log import get_logger
from agentkit.transport.gate import HANDED_OVER, SUCCEEDED
from startup.node.doors import Doors
from startup.node.exits import Exit
from startup.node.hibernation.health_answers import told
from startup.node.hibernation.socket_activation import SocketActivation
from startup.node.limits.bounds import Bounds
from startup.node.orders import machine_of
from startup.node.paths import Places
from startup.node.readiness import Waits
from startup.node.running import Running
from startup.node.sockets import AgentSockets
from startup.node.store import Incarnations
from startup.node.termination import Census, Termination
from startup.node.turns import Turns
from startup.node.zygote.forks import FORK_ERRORS, Forks
from startup.node.zygote.keeper import ZygoteKeeper
from startup.plan import ending, transitions
from startup.plan.actions import (
    Abort,
    Action,
    CloseListeners,
    Configure,
    Fork,
    ForkBeside,
    Kill,
    LieDown,
    OpenListeners,
    ProbeExternal,
    ProbeReady,
    Release,
    Terminate,
)
from startup.plan.phase import Phase
from startup.plan.process import Process
from startup.plan.sleep_record import CONNECTION

log = get_logger("node.executor")

#: How a process is told to go.
_GO: Final = {"": signal.SIGTERM, "serves": SUCCEEDED, "waits": HANDED_OVER}


class Executor:
    """Performs actions; one for a node. Owns pidfds and sockets, knows which pid is whose."""

    def __init__(
        self,
        turns: Turns,
        places: Places,
        incarnations: Incarnations,
        zygote: ZygoteKeeper,
        *,
        nofile: int,
        random: Random,
        key: Callable[[], str] = lambda: "",
    ) -> None:
        """`key`: fingerprint of the key that the next process serves with."""
        self.running: dict[Incarnation, Running] = {}
        self.by_pid: dict[int, Running] = {}
        self.sockets = AgentSockets(self._heir)
        self.on_lent: Callable[[Running], None] = lambda _: None  #: a process that nobody tells the end of
        #: What has to be done before an agent is told to go: it leaves the registry, then it drains. None: nothing has
        self.before_end: Callable[[AgentId], Awaitable[None] | None] = lambda _: None
        self.on_left: Callable[[Incarnation], None] = lambda _: None  #: nothing of a process is left
        #: A slot sleeps, and nothing of its process is left
        self.on_laid: Callable[[Process], None] = lambda _: None
        self.on_known: Callable[[Running], None] = lambda _: None  #: from now on it is known whose pid this is
        self._turns = turns
        self._core = turns.core
        self._places = places
        self._zygote = zygote
        self._random = random
        self.doors = Doors(places)
        self.bounds = Bounds(places)
        self.bounds.on_over = self._is_over_limit
        self._termination = Termination(str(places.control), self.bounds)
        self.activation = SocketActivation(
            on_knock=self._knocked,
            answer=lambda who, path: told(self._core.processes.get(who), path, places.data(who.instance)),
        )
        self._waits = Waits()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Processes on their way; `forks.configs`: what is said over agents' config, and who tells them
        self.forks = Forks(
            turns,
            places,
            incarnations,
            zygote,
            sockets=self.sockets,
            doors=self.doors,
            bounds=self.bounds,
            nofile=nofile,
            random=random,
            key=key,
            spawn=self._spawn,
            on_began=self._began,
            on_ended=self.ended,
        )

    # -- actions

    def perform(self, action: Action) -> None:
        """Never raises; what can't be done is told to the reconciler."""
        match action:
            case Fork(id):
                self.activation.release(id)  # what comes from here on is for the process
                self.forks.order(id)
            case ForkBeside(id):
                self.forks.order_beside(id, self.running.get(self._core.processes[id].incarnation))
            case Release(_, incarnation):
                self.forks.open_gate(incarnation)
            case OpenListeners(id):
                self.activation.release(id)
                self._hold_ports(id)
            case LieDown(id):
                self._watch_over(id)
            case CloseListeners(id):
                self.activation.release(id)
                self.sockets.close(id)
                self._zygote.forget(str(id))
            case Terminate() | Abort() | Kill():
                self._signal(action)
            case Configure(id, incarnation):
                assert self.forks.configs is not None
                self.forks.configs.offer(id, incarnation)
            case ProbeReady(id):
                self._probe(id)
            case ProbeExternal(name):
                self._probe_external(name)

    def adopt(self, running: Running) -> None:
        """A process of an earlier node; its pidfd is ours from now on."""
        self.running[running.incarnation] = self.by_pid[running.pid] = running
        self.on_known(running)

    def settle(self) -> None:
        """Everything of an earlier node was adopted: what holds its processes is known again, what it left over goes."""
        for running in self.running.values():
            spec = self._core.processes[running.id].spec
            self.bounds.adopt(spec, running.incarnation, running.pid)
            try:
                self.doors.admit(spec)
            except FORK_ERRORS as exc:  # it runs on, and does not hear of us
                log.error("agent.no_door", agent=str(running.id), error=str(exc))
        self.bounds.clear()

    def of(self, id: AgentId) -> Running | None:
        """The process that a slot is known by."""
        p = self._core.processes.get(id)
        return self.running.get(p.incarnation) if p is not None else None

    def is_wanted(self, incarnation: Incarnation) -> bool:
        """Whether this life counts. One on order does: a process may speak before the zygote's word of it is read."""
        return incarnation in self.running or self.forks.is_on_order(incarnation)

    def looks_after(self, id: AgentId, incarnation: Incarnation) -> bool:
        """Whether a process that says so is one of ours."""
        running = self.running.get(incarnation)
        return running is not None and running.id == id

    def census(self) -> Census:
        """Who is alive on this machine, and whose it is."""
        return self._termination.look()

    def mains(self) -> dict[AgentId, Running]:
        """Those by which their slots are known."""
        return {id: found for id in self._core.processes if (found := self.of(id)) is not None}

    def ended(self, exit: Exit) -> None:
        """A process is gone (told by the zygote, or seen by ourselves)."""
        incarnation = Incarnation(exit.incarnation)
        if self.forks.ended_early(exit):
            return
        running = self.running.pop(incarnation, None)
        if running is None:
            return
        id = running.id
        if self.of(id) is None:
            self._waits.stop(id)
        self.forks.close_gate(incarnation)
        self.by_pid.pop(running.pid, None)
        os.close(running.pidfd)
        self._turns.on(id, lambda p: ending.gone(p, self._turns.now_s()), incarnation=incarnation)
        self._spawn(self._clear(running, exit.code), f"sweep {id}")

    async def close(self) -> None:
        """Lets go of everything; processes that still run are not touched."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._waits.close()
        self.activation.close()
        for running in self.running.values():
            os.close(running.pidfd)
        self.running.clear()
        self.by_pid.clear()
        self.forks.close()
        self.sockets.close_all()
        self.bounds.close()
        self.doors.close()

    def _began(self, running: Running, is_lent: bool) -> None:
        id, incarnation = running.id, running.incarnation
        self.running[incarnation] = self.by_pid[running.pid] = running
        now_s = self._turns.now_s()
        self._turns.on(id, lambda p: transitions.forked(p, running.pid, incarnation, now_s), incarnation=incarnation)
        if is_lent:
            self._turns.on(id, transitions.untimed, incarnation=incarnation)
            self.on_lent(running)
        self.on_known(running)

    # -- ports

    def _heir(self, host: str, port: int) -> tuple[AgentId, str] | None:
        """The agent that shall listen there by the revision that we have, and the name that the socket has with it."""
        desired = self._core.desired
        id = desired.at_port.get((self._core.machine, port))
        if id is None or not desired.wants(id):
            return None
        names = [name for name, address in self.forks.addresses(desired.specs[id]).items() if address == (host, port)]
        return (id, names[0]) if names else None

    def _hold_ports(self, id: AgentId) -> None:
        try:
            self.forks.listeners(self._core.processes[id].spec)
        except FORK_ERRORS as exc:
            log.warning("agent.port", agent=str(id), error=str(exc))  # tried again, and told, when it is forked

    # -- sleep

    def _watch_over(self, id: AgentId) -> None:
        p = self._core.processes[id]
        had_them = self.sockets.has(id)
        try:
            fds = self.forks.listeners(p.spec)
        except FORK_ERRORS as exc:
            # Nobody could wake it, so it does not sleep: it starts, which tells what is wrong with its port
            log.error("agent.port", agent=str(id), error=str(exc))
            self._core.wake(id, str(exc), self._turns.now_s())
            self._turns.soon()
            return
        if not had_them:
            self._zygote.keep(str(id), fds)
        self.activation.watch(id, fds)
        self.on_laid(p)

    def _knocked(self, id: AgentId) -> None:
        self._core.wake(id, CONNECTION, self._turns.now_s())
        self._turns.soon()

    # -- signals and ends

    def _signal(self, action: Terminate | Abort | Kill) -> None:
        running = self.running.get(action.incarnation)
        if running is None:
            return  # it is gone already, and being swept
        match action:
            case Terminate(successor=successor):
                if self._is_over(running) and (waiting := self.before_end(running.id)):
                    self._spawn(self._terminate_after(waiting, running), f"terminate {running.id}")
                else:
                    self._termination.terminate(running.pid, running.pidfd, _GO[successor])
            case Abort():
                self._termination.abort(running.pid, running.pidfd)
            case Kill():
                self._termination.kill(running.pid, running.pidfd)

    def _is_over(self, running: Running) -> bool:
        """Whether its slot stops with it: neither serves another beside it, nor waits a successor."""
        p = self._core.processes.get(running.id)
        return p is not None and p.incarnation == running.incarnation and p.phase is Phase.STOPPING

    def _is_over_limit(self, id: AgentId, incarnation: Incarnation, why: str) -> None:
        log.warning("agent.over_limit", agent=str(id), why=why)
        now_s = self._turns.now_s()
        self._turns.on(id, lambda p: transitions.over_limit(p, why, now_s), incarnation=incarnation)

    async def _terminate_after(self, waiting: Awaitable[None], running: Running) -> None:
        await waiting
        if self.running.get(running.incarnation) is running:
            self._termination.terminate(running.pid, running.pidfd)

    async def _clear(self, running: Running, code: int | None) -> None:
        left = await self._termination.sweep(running.pid, int(running.incarnation))
        if left:
            log.error("agent.leftovers", agent=str(running.id), pids=[found.pid for found in left])
        self.on_left(running.incarnation)
        why = self.bounds.ended(running.incarnation)
        now_s = self._turns.now_s()
        self._turns.on(
            running.id, lambda p: ending.exited(p, code, now_s, self._random, over=why), incarnation=running.incarnation
        )

    # -- probes

    def _probe(self, id: AgentId) -> None:
        running = self.of(id)
        if running is None:
            return
        spec = self._core.processes[id].spec
        host = machine_of(self.forks.fleet, spec.machine).host

        def on_ready() -> None:
            now_s = self._turns.now_s()
            self._turns.on(id, lambda p: transitions.ready(p, now_s), incarnation=running.incarnation)

        self._waits.for_program(spec, host, str(self._places.log(id.instance)), running.log_start, on_ready)

    def _probe_external(self, name: str) -> None:
        external = next((found for found in self.forks.fleet.externals if found.name == name), None)
        if external is None:
            return

        def on_answer() -> None:
            self._core.external_answered(name, self._turns.now_s())
            self._turns.soon()

        self._waits.for_external(external, lambda: self._core.waits_for_external(name), on_answer)

    # -- tasks

    def _spawn(self, work: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("node.task_failed", task=task.get_name(), exc_info=task.exception())
