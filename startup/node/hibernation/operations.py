"""Who sleeps and who does not: what agents ask of their node, and what operators ask of both.

sleep {id, incarnation, calls, memory_mb, wake_in_s, asked, patterns}   an agent wants to go; refused (`awake`) with a reason. Answered
                                  when its node listens to the events that `patterns` mean, with `listens`: how many patterns
kept_events {id, incarnation, offset}   a page of what was kept of them, for its next process (event_activation.py)
asleep {id, incarnation}          it was told to sleep lightly, and does
awake {id, incarnation, why}      it was told to sleep, or was about to, and stays
hibernate {agents, depth}         an operator; answered once it is known of each whether it sleeps
wake {agents}"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentkit.agent.orders import HIBERNATE, WAKE
from agentkit.clock import SYSTEM_CLOCK
from agentkit.errors import BadRequest
from agentkit.names import AgentId, Incarnation, matching
from agentkit.settings import Depth
from startup.errors import Refused
from startup.node.executor import Executor
from startup.node.turns import Turns
from startup.plan.phase import Phase
from startup.plan.process import Process
from startup.plan.sleep_record import EVENT, OPERATOR
from startup.plan.sleep_transitions import Wish, can_sleep, stays_awake
from startup.plan.transitions import ordered

if TYPE_CHECKING:
    from startup.node.hibernation.event_activation import EventActivation

#: How long an operator waits to hear whether an agent sleeps, in seconds: what runs in it may be finished first.
ANSWER_S: Final = 30.0
MAX_TEXT: Final = 500
#: A sleeper's events are heard by its node within this time, in seconds, or it sleeps lightly.
LISTEN_S: Final = 2.0


class HibernationOperations:
    """Belongs to the running loop. `changed` with every turn that changed something."""

    def __init__(
        self, turns: Turns, executor: Executor, folder: Path, ensure_relay: Callable[[Mapping[str, Any]], Any]
    ) -> None:
        """`folder`: where the event relay's sockets are; `ensure_relay`: NodeEvents.ensure."""
        self._turns = turns
        self._core = turns.core
        self._executor = executor
        self._waiting: dict[AgentId, list[asyncio.Future[str]]] = {}  # of why it stays awake, or ""
        self._folder, self._ensure_relay = folder, ensure_relay
        self._events: EventActivation | None = None
        executor.on_laid = self._laid

    @property
    def operations(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        return {
            "sleep": self._sleep,
            "asleep": self._asleep,
            "awake": self._awake,
            "kept_events": self._kept_events,
            "hibernate": self._hibernate,
            "wake": self._wake,
        }

    def close(self) -> None:
        """Who sleeps is not listened for any more."""
        if self._events is not None:
            self._events.close()

    def changed(self, slots: tuple[Process, ...], removed: tuple[Process, ...]) -> None:
        """Some slots are not what they were, or not there any more."""
        if self._events is not None:
            self._events.changed(slots, removed)
        if not self._waiting:
            return
        for p in slots:
            if p.phase is Phase.HIBERNATED:
                self._decided(p.id, "")
            elif p.phase is not Phase.READY:
                self._decided(p.id, f"it is {p.phase.value}")

    def rekeyed(self, key: str) -> None:
        """The next process of a sleeper serves with `key` (fingerprint; "": none), so that is who callers have to expect."""
        for p in tuple(self._core.processes.values()):
            if p.phase is Phase.HIBERNATED and p.key != key:
                self._core.on(p.id, lambda p: ordered(p, p.incarnation, key), self._turns.now_s())
                self._turns.soon()

    # -- agents

    async def _sleep(self, said: Mapping[str, Any]) -> dict[str, Any]:
        id, incarnation = AgentId.parse(said["id"]), Incarnation(int(said["incarnation"]))
        wake_in_s = said.get("wake_in_s")
        wish = Wish(
            calls=int(said.get("calls", 0)),
            memory_mb=float(said.get("memory_mb", 0.0)),
            wake_in_s=None if wake_in_s is None else max(0.0, float(wake_in_s)),
            is_asked=bool(said.get("asked")),
            patterns=tuple(str(text) for text in said.get("patterns", ())),
        )
        if not self._executor.sockets.has(id):
            raise Refused("awake", "its node does not have its sockets, so nobody would hear who knocks")
        refusal = self._core.sleep(id, incarnation, wish, self._turns.now_s(), SYSTEM_CLOCK.wall_s())
        if refusal is not None:
            raise Refused("awake", refusal.why, {"retry_s": refusal.retry_s})
        self._turns.soon()
        if wish.patterns:
            await self._listen(id, incarnation, wish.patterns)
        return {"listens": len(wish.patterns)}

    async def _listen(self, id: AgentId, incarnation: Incarnation, patterns: tuple[str, ...]) -> None:
        why = f"its node does not hear its events within {LISTEN_S:g} s"
        try:
            is_heard = await self._event_activation().listen(id, incarnation, patterns)
            if is_heard:
                return
            if is_heard is None:  # it has said meanwhile that it stays awake, and may have asked again
                raise Refused("awake", "it is needed", {"retry_s": 1.0})
        except BadRequest as error:
            why = error.message
        self._stay(id, incarnation, why)
        raise Refused("awake", why, {"retry_s": 1.0})

    def _event_activation(self) -> EventActivation:
        if self._events is None:
            from startup.node.hibernation.event_activation import EventActivation  # most machines never need it

            self._events = EventActivation(self._folder, self._ensure_relay, on_event=self._came, within_s=LISTEN_S)
        return self._events

    def _came(self, id: AgentId) -> None:
        """An event, for an agent that sleeps, falls asleep or is being woken."""
        if self._core.wake(id, EVENT, self._turns.now_s()):
            self._turns.soon()

    def _laid(self, p: Process) -> None:
        if self._events is not None or (p.sleep is not None and p.sleep.patterns):
            self._event_activation().laid(p)

    async def _kept_events(self, said: Mapping[str, Any]) -> dict[str, Any]:
        return await self._event_activation().take(said)

    def _awake(self, said: Mapping[str, Any]) -> dict[str, Any]:
        id, incarnation = AgentId.parse(said["id"]), Incarnation(int(said["incarnation"]))
        why = str(said.get("why", ""))[:MAX_TEXT] or "it stays awake"
        self._stay(id, incarnation, why)
        return {}

    def _stay(self, id: AgentId, incarnation: Incarnation, why: str) -> None:
        self._core.on(id, lambda p: stays_awake(p, why), self._turns.now_s(), incarnation=incarnation)
        if self._events is not None:
            self._events.drop(id)
        self._decided(id, why)
        self._turns.soon()

    def _asleep(self, said: Mapping[str, Any]) -> dict[str, Any]:
        self._decided(AgentId.parse(said["id"]), "")
        return {}

    # -- operators

    async def _hibernate(self, said: Mapping[str, Any]) -> dict[str, Any]:
        depth = str(said.get("depth", "deep"))
        number = {str(name): number for name, number in HIBERNATE.items()}.get(depth)
        if number is None:
            raise BadRequest(f"depth {depth!r}: want one of {', '.join(HIBERNATE)}")
        ids = self._named(said["agents"])
        answers = await self._tell(dict.fromkeys(ids, number))
        return {
            "asleep": [str(id) for id, why in answers.items() if not why],
            "awake": {str(id): why for id, why in answers.items() if why},
        }

    async def send(self, depths: Mapping[AgentId, Depth]) -> dict[AgentId, str]:
        """Tell own agents to sleep, each so deep, as an operator would. Why each does not, or "", once that is known."""
        return await self._tell({id: HIBERNATE[depth] for id, depth in depths.items()})

    async def _tell(self, orders: Mapping[AgentId, int]) -> dict[AgentId, str]:
        told = {id: self._told(id, number) for id, number in orders.items()}
        return {id: await found if isinstance(found, asyncio.Future) else found for id, found in told.items()}

    def _told(self, id: AgentId, number: signal.Signals | int) -> asyncio.Future[str] | str:
        """Why it does not sleep; "": it does already; or what that will come to."""
        p, running = self._core.processes[id], self._executor.of(id)
        if p.phase is Phase.HIBERNATED:
            return ""
        if why := can_sleep(p.spec):
            return why
        if p.phase is not Phase.READY or running is None:
            return f"it is {p.phase.value}"
        try:
            signal.pidfd_send_signal(running.pidfd, number)
        except ProcessLookupError:
            return "it has just ended"
        loop = asyncio.get_running_loop()
        decided: asyncio.Future[str] = loop.create_future()
        self._waiting.setdefault(id, []).append(decided)
        late = loop.call_later(ANSWER_S, self._decided, id, f"it did not say so within {ANSWER_S:.0f} s")
        decided.add_done_callback(lambda _: late.cancel())
        return decided

    def _wake(self, said: Mapping[str, Any]) -> dict[str, Any]:
        ids = self._named(said["agents"])
        woken = [id for id in ids if self._core.wake(id, OPERATOR, self._turns.now_s())]
        self._turns.soon()
        for id in ids:
            p, running = self._core.processes[id], self._executor.of(id)
            if p.phase is Phase.READY and running is not None and not can_sleep(p.spec):
                signal.pidfd_send_signal(running.pidfd, WAKE)
        return {"woken": [str(id) for id in woken]}

    def _named(self, texts: Iterable[Any]) -> list[AgentId]:
        found: dict[AgentId, None] = {}
        for text in texts:
            found.update(dict.fromkeys(matching(str(text), self._core.processes, here=self._core.machine)))
        return list(found)

    def _decided(self, id: AgentId, why: str) -> None:
        for future in self._waiting.pop(id, ()):
            if not future.done():
                future.set_result(why)
