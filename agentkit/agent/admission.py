"""When a request may run: at once, later, or not at all. What the limits are stands in docs/calls.md; one gate is
resilience/admission.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from agentkit.agent.context import Serving
from agentkit.agent.handlers import Method
from agentkit.clock import now_s
from agentkit.errors import CallError, Overloaded
from agentkit.resilience.admission import LONGEST_WAIT_S, Gate
from agentkit.resilience.deadline import DeadlineQueue
from agentkit.resilience.policy import ServePolicy

#: Timers may fire so much early, in seconds.
_ROUGHLY_S: Final = 0.005
#: Places beyond an agent's limits, as one part in so many, for methods with `priority="high"`.
SPARE_PART: Final = 4


class Admission:
    """Of one dispatcher: the gates of its methods and the queues before them. One timer for all that wait."""

    def __init__(
        self,
        policy: ServePolicy,
        methods: Iterable[Method],
        *,
        start: Callable[[Serving], None],
        refuse: Callable[[Serving, CallError], None],
        waited: Callable[[float], None],
    ) -> None:
        """`start`: its turn has come. `refuse`: it has waited too long, or may not even wait. `waited`: so long, before a turn."""
        self._start, self._refuse, self._waited = start, refuse, waited
        self._policy = policy
        self.threads = policy.threads + -(-policy.threads // SPARE_PART)  #: that may be needed at once
        self._async_gate = self._shared("handlers", policy.running)
        self._thread_gate = self._shared("threads", policy.threads)
        self.gates = {method.name: self._gates_of(method) for method in methods}
        #: all of them by name: those that methods share, those of methods with a limit of their own
        self.all: dict[str, Gate[Serving]] = {
            gate.name: gate
            for gate in (self._async_gate, self._thread_gate, *(g for found in self.gates.values() for g in found))
        }
        self._limits = DeadlineQueue(asyncio.get_running_loop(), self._on_waited_too_long)
        self._waiting: dict[int, Serving] = {}

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Forget the timer."""
        self._limits.close()

    def admit(self, work: Serving) -> None:
        """Start it, or let it wait, or refuse it."""
        gates = self.gates[work.method.name]
        for gate in gates:
            if gate.inside >= gate.limit and gate.is_full(urgent=work.method.is_urgent):
                self._wait(work, gate)
                return
        for gate in gates:
            gate.inside += 1
        self._start(work)

    def leave(self, work: Serving, seconds: float) -> None:
        """It has run for so long, and its places are free."""
        gates = self.gates[work.method.name]
        has_line = False
        for gate in gates:
            gate.inside -= 1
            gate.ran(seconds)
            if gate.line or gate.urgent:
                has_line = True
        if not has_line:
            return
        for gate in gates:
            # Not just one: a follower may have to wait at another gate, and the place is for the next then
            while (gate.line or gate.urgent) and (follower := gate.next_waiting(now := now_s())) is not None:
                limit_s = self._limit_s(follower, gate)
                waited_s = now - follower.queued_s
                if limit_s is not None and waited_s > limit_s and self._over_s(follower, gate, now) > 0:
                    self._shed(follower, gate)  # its timer is late, by up to 20 ms
                    continue
                self._waited(waited_s)
                self._end_wait(follower)
                self.admit(follower)

    def withdraw(self, work: Serving) -> None:
        """It does not want a turn any more."""
        if work.gate is not None:
            work.gate.forget(work)
            self._end_wait(work)

    # -- gates --------------------------------------------------------------------------------------------------------

    def _shared(self, name: str, limit: int) -> Gate[Serving]:
        policy = self._policy
        return Gate(
            name, limit, policy.queue, wait_s=policy.queue_wait_s, adapts=True, spare=-(-limit // SPARE_PART)
        )  # fmt: skip

    def _gates_of(self, method: Method) -> tuple[Gate[Serving], ...]:
        options = method.options
        if options.priority == "control":
            return ()
        shared = self._async_gate if method.is_async else self._thread_gate
        if options.concurrency is None:
            return (shared,)
        room = self._policy.queue if options.queue is None else options.queue
        own_s = options.queue_wait_s
        if own_s is not None:
            own = Gate[Serving](method.name, options.concurrency, room, wait_s=own_s)
        else:
            # Who serialises wants one after another, not fewer: there the callers' deadlines are the limit
            wait_s = None if options.concurrency == 1 else self._policy.queue_wait_s
            own = Gate(method.name, options.concurrency, room, wait_s=wait_s, adapts=True)
        return (own, shared)

    def _limit_s(self, work: Serving, gate: Gate[Serving]) -> float | None:
        own_s = work.method.options.queue_wait_s
        return gate.wait_s if own_s is None else own_s

    def _over_s(self, work: Serving, gate: Gate[Serving], now: float) -> float:
        limit_s = self._limit_s(work, gate)
        if limit_s is None:
            return -LONGEST_WAIT_S  # it was limited once; look again
        if work.method.options.queue_wait_s is not None:
            return gate.over_s(work, limit_s, now, burst_s=0.0)  # exactly so long
        return gate.over_s(work, limit_s, now)

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _wait(self, work: Serving, gate: Gate[Serving]) -> None:
        limit_s = self._limit_s(work, gate)
        work.queued_s = now_s()
        if limit_s == 0:
            self._refuse(work, _overloaded(gate, "none may wait"))
        elif not gate.join(work, urgent=work.method.is_urgent):
            self._refuse(work, _overloaded(gate, f"{gate.room:,} wait already"))
        else:
            work.gate = gate
            self._waiting[work.key] = work
            if limit_s is not None:
                self._limits.add(work.key, work.queued_s + limit_s)

    def _end_wait(self, work: Serving) -> None:
        work.gate = None
        del self._waiting[work.key]
        self._limits.remove(work.key)

    def _on_waited_too_long(self, key: int) -> None:
        work = self._waiting.get(key)
        if work is None or work.gate is None:
            return
        gate = work.gate
        over_s = self._over_s(work, gate, now := now_s())
        if over_s < -_ROUGHLY_S:
            self._limits.add(key, now - over_s)
            return
        gate.forget(work)
        self._shed(work, gate)

    def _shed(self, work: Serving, gate: Gate[Serving]) -> None:
        waited_ms = (now_s() - work.queued_s) * 1000
        self._end_wait(work)
        self._refuse(work, _overloaded(gate, f"no turn within {waited_ms:.0f} ms"))


def _overloaded(gate: Gate[Serving], why: str) -> Overloaded:
    return Overloaded(f"{gate.limit} run at {gate.name}, {why}", details={"retry_after_ms": gate.retry_after_ms})
