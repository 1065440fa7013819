"""Keeping this machine's agents registered with Consul: one thread, one call at a time, whatever Consul does.

What is to be done is decided by agentkit/directory/registering.py, when by pacing.py. What stands there is found out after
every trouble, so a Consul that comes back with nothing is given everything again, spread over two seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from random import Random
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.directory.pacing import Backoff, feed_due_s, step_pause_s
from agentkit.directory.registering import Deregister, Feed, Register, Standing, Step, Wanted, done, found_of, steps
from agentkit.names import AgentId
from agentkit.observe.log import get_logger

log = get_logger("node.registrar")

#: Of each agent's check, in seconds.
TTL_S: Final = 15.0
#: A call that takes longer than this is trouble, in seconds, even when it succeeds.
SLOW_S: Final = 2.0
#: A refused token is tried again after so long at most, in seconds: it may be given its rights, or be another one then.
REFUSED_S: Final = 5.0


#: What a node before us has registered stays for so long, in seconds, until it is known whether it runs.
SPARED_S: Final = 5.0


class Registrar:
    """`want` and `leave` belong to the loop, the rest to the thread."""

    def __init__(
        self,
        client: Any,  # agentkit.directory.consul.ConsulClient, which is imported by who makes one
        cluster: str,
        machine: str,
        *,
        ready_check_s: float = 0.0,
        ttl_s: float = TTL_S,
        on_trouble: Callable[[], None] = lambda: None,
        random: Random | None = None,
    ) -> None:
        """`on_trouble` is called on the thread, whenever Consul did not do what was asked, or took long for it."""
        self.confirmed: Mapping[AgentId, float] = {}  #: who stands there and passes, by our own doing, since when
        self.problem = "not asked yet"  #: empty: the last call succeeded
        self._client = client
        self._cluster, self._machine = cluster, machine
        self._ready_check_s, self._ttl_s = ready_check_s, ttl_s
        self._on_trouble = on_trouble
        self._backoff = Backoff((random or Random()).random)
        self._changed = threading.Condition()
        self._wanted: dict[AgentId, Wanted] = {}
        self._leaving: dict[AgentId, Future[None]] = {}
        self._told_of: set[AgentId] = set()
        self._began_s = now_s()
        self._is_dirty = False
        self._is_closing = False
        self._is_doubtful = False  # somebody else noticed trouble: what stands there is to be looked at again
        self._standing: dict[AgentId, Standing] | None = None
        self._taken: frozenset[str] = frozenset()
        self._refused: dict[AgentId, str] = {}  # digests that Consul does not take
        self._fed_s: float | None = None
        self._was_registered = (
            False  # ever: what has to be told again after a loss is spread, what starts now is waited for
        )
        self._thread = threading.Thread(target=self._live, name="consul:registrar", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # -- for the loop

    def want(self, changed: Mapping[AgentId, Wanted | None]) -> None:
        """Agents as they shall stand there from now on; None: not at all."""
        with self._changed:
            self._told_of.update(changed)
            for id, wanted in changed.items():
                if wanted is None:
                    self._is_dirty |= self._wanted.pop(id, None) is not None
                elif self._wanted.get(id) != wanted:
                    self._wanted[id] = wanted
                    self._is_dirty = True
            if self._is_dirty:
                self._changed.notify()

    def leave(self, id: AgentId) -> Future[None]:
        """Take an agent out; done as soon as Consul knows, or is known not to answer."""
        with self._changed:
            future = self._leaving.get(id)
            if future is None:
                future = Future()
                was_wanted = self._wanted.pop(id, None) is not None
                self._is_dirty |= was_wanted
                if not was_wanted or self._is_closing or self.problem:
                    future.set_result(None)
                    return future
                self._leaving[id] = future
                self._changed.notify()
            return future

    def look_again(self) -> None:
        """Consul was away, or is another one: find out what stands there. From any thread."""
        with self._changed:
            self._is_doubtful = self._is_dirty = True
            self._changed.notify()

    def close(self, *, deregister: bool) -> None:
        """End. With `deregister` everything is taken out first, if Consul answers. From any thread; `join` waits for it."""
        with self._changed:
            if deregister:
                self._wanted.clear()
            self._is_closing = self._is_dirty = True
            self._changed.notify()

    def join(self, limit_s: float) -> None:
        """Wait for the end; after `limit_s` the call that is under way is cut off."""
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._client.abort()
            self._thread.join(limit_s)

    # -- the thread

    def _live(self) -> None:
        from agentkit.directory.consul_http import RegistryError, RegistryRefused

        while self._wait_for_work():
            try:
                self._round()
            except RegistryError as exc:
                pause_s = self._failed(str(exc), REFUSED_S if isinstance(exc, RegistryRefused) else 0.0)
            except Exception:
                log.exception("consul.failed")
                pause_s = self._failed("an error of our own, see the log", REFUSED_S)
            else:
                pause_s = 0.0
                if self.problem:
                    log.info("consul.registered", agents=len(self._standing or ()))
                self.problem = ""
                self._backoff.succeeded()
            with self._changed:
                self._answer_leaving(gave_up=pause_s > 0)
                if self._is_closing and (pause_s > 0 or not self._is_dirty):
                    break
                if pause_s:
                    self._changed.wait_for(lambda: self._is_closing, pause_s)
                    self._is_dirty = True
        with self._changed:
            self._answer_leaving(gave_up=True)
        self._client.close()

    def _wait_for_work(self) -> bool:
        with self._changed:
            due_s = feed_due_s(self._fed_s, self._ttl_s, now_s())
            has_any = self._standing is None or bool(self._wanted)
            if self._spared():
                due_s = min(due_s, self._began_s + SPARED_S)
            self._changed.wait_for(
                lambda: self._is_dirty or self._is_closing, max(0.0, due_s - now_s()) if has_any else None
            )
            return True

    def _round(self) -> None:
        """Everything that is to be done now. What changes meanwhile is looked at after the step that is under way."""
        with self._changed:
            if self._is_doubtful:
                self._standing, self._is_doubtful = None, False
        was_unknown = self._standing is None
        if was_unknown:
            found = found_of(self._timed(self._client.services), self._cluster, self._machine)
            self._standing, self._fed_s = found.standing, None
            self._note_taken(found.taken)
        with self._changed:
            self._is_dirty = False
            wanted = {id: want for id, want in self._wanted.items() if self._refused.get(id) != want.entry.digest}
        now = now_s()
        feed = now >= feed_due_s(self._fed_s, self._ttl_s, now)
        assert self._standing is not None
        if not was_unknown and any(id not in self._standing for id in wanted):
            # somebody else may have taken an id since
            self._note_taken(found_of(self._timed(self._client.services), self._cluster, self._machine).taken)
        todo = steps(wanted, self._standing, taken=self._taken, spared=self._spared(), feed=feed)
        pause_s = step_pause_s(len(todo)) if was_unknown and self._was_registered else 0.0
        for step in todo:
            self._perform(step)
            with self._changed:
                if self._is_dirty and (self._leaving or self._is_closing or self._is_doubtful):
                    return
                if pause_s:
                    self._changed.wait_for(lambda: self._is_closing or bool(self._leaving), pause_s)
        if feed:
            self._fed_s = now

    def _spared(self) -> frozenset[AgentId]:
        """Who stands there since a node before us, and may run: it is not known yet."""
        with self._changed:
            if self._is_closing or self._standing is None or now_s() >= self._began_s + SPARED_S:
                return frozenset()
            return frozenset(self._standing.keys() - self._told_of)

    def _perform(self, step: Step) -> None:
        from agentkit.directory.consul_http import RegistryAway, RegistryError, RegistryRefused

        assert self._standing is not None
        match step:
            case Register(id, want):
                definition = want.entry.definition(self._ttl_s, self._ready_check_s or None, want.status)
                try:
                    self._timed(lambda: self._client.register(definition))
                except (RegistryAway, RegistryRefused):
                    raise
                except RegistryError as exc:  # this one is not to its liking; the others may be
                    log.error("consul.not_registered", agent=str(id), error=str(exc))
                    self._refused[id] = want.entry.digest
                    return
            case Deregister(id):
                self._timed(lambda: self._client.deregister(id))
            case Feed(id, status):
                if not self._timed(lambda: self._client.feed(id, status)):
                    log.info("consul.forgot", agent=str(id))
                    self.look_again()
                    return
        self._was_registered = True
        self._standing = done(self._standing, step)
        now = now_s()
        self.confirmed = {
            id: self.confirmed.get(id, now) for id, there in self._standing.items() if there.status == "passing"
        }

    def _timed(self, call: Callable[[], Any]) -> Any:
        began_s = now_s()
        try:
            return call()
        finally:
            if now_s() - began_s > SLOW_S:
                self._on_trouble()

    def _failed(self, why: str, at_least_s: float) -> float:
        self._standing, self._fed_s, self.confirmed = None, None, {}
        if why != self.problem:
            log.warning("consul.away", error=why)
        self.problem = why
        self._on_trouble()
        return max(self._backoff.failed(), at_least_s)

    def _answer_leaving(self, *, gave_up: bool) -> None:
        for id in [id for id in self._leaving if gave_up or id not in (self._standing or ())]:
            self._leaving.pop(id).set_result(None)

    def _note_taken(self, taken: frozenset[str]) -> None:
        for id in sorted(taken - self._taken):
            log.error(
                "consul.taken", id=id, hint="somebody else registered a service of this id with this Consul agent"
            )
        self._taken = taken
