"""The locks of names, held in Consul by one session for all agents of this machine: two threads, one that holds and one that watches.

One session, so that an idle leader costs one call in 5 s however many there are; a lock is let go as soon as its leader is gone, and the
session ends by its TTL when the machine is. Nothing else may end it: it hangs on no health check (directory/consul.py).

When locks are certainly ours is counted from the moment in which a renewal that succeeded was sent, and is less than the TTL: whoever
is cut off from Consul has stopped to lead before anybody else can begin. Consul alone is asked who holds what; where it has lost its data
(a key that we know is not there), a whole TTL is waited before it is believed, because elsewhere somebody may still lead.

A fence is the number that Consul gives to the change by which a lock was taken, plus a base that stands in the key: 0, until a Consul that
has lost its data counts from the beginning again, and a node that knows greater fences takes the lock."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final, NamedTuple

from agentkit.clock import now_s
from agentkit.directory.pacing import QUERY_GAP_S, Backoff, next_index
from agentkit.observe.log import get_logger

log = get_logger("node.locks")

#: After so much of its TTL the session is renewed, and so much before its end nobody leads any more.
RENEW_PART: Final = 1 / 3
MARGIN_PART: Final = 1 / 5
#: Consul keeps a lock for so long from others after its session ended, in seconds (whole ones).
LOCK_DELAY_S: Final = 1
#: A lock that is free and that we did not get (its lock delay runs) is tried again after, in seconds.
TRY_AGAIN_S: Final = 0.5
#: A refused token is tried again after, in seconds.
REFUSED_S: Final = 5.0
#: One query of the watch waits so long, in seconds.
WAIT_S: Final = 60.0


class _Mine(NamedTuple):
    fence: int
    since: int  #: index of the change by which it became ours; 0: of the node before us


class LockKeeper:
    """`want`, `release` and their like belong to the loop; callbacks are called on the threads."""

    def __init__(
        self,
        keeping: Any,  # agentkit.directory.consul.ConsulClient, and another one
        watching: Any,
        prefix: str,
        owner: str,
        *,
        ttl_s: float,
        session: str = "",
        held: Mapping[str, int] | None = None,
        fences: Mapping[str, int] | None = None,
        on_got: Callable[[str, int], None],
        on_lost: Callable[[str, str], None],
        on_renewed: Callable[[], None],
        on_known: Callable[[], None] = lambda: None,
        random: Random | None = None,
    ) -> None:
        """`prefix`: of the keys; the name follows. `owner`: stands in a key that is ours, for people. `session`, `held`: of the node before
        us; `fences`: the greatest that it knew. `on_known`: there is a greater one."""
        self.session = session
        self.problem = ""
        #: Until when what we hold is certainly ours; None: not known (yet).
        self.until_s: float | None = None
        self._keeping, self._watching = keeping, watching
        self._prefix, self._owner = prefix, owner
        self._ttl_s = ttl_s
        self._on_got, self._on_lost, self._on_renewed = on_got, on_lost, on_renewed
        self._on_known = on_known
        self._backoff = Backoff((random or Random()).random)
        self._changed = threading.Condition()  # its lock may be taken twice by one thread
        self._wanted: dict[str, float] = {}  # name -> not to be tried before
        self._held = {name: _Mine(fence, 0) for name, fence in (held or {}).items()}
        self._leaving: dict[str, None] = {}
        self._fences: dict[str, int] = {
            **(fences or {}),
            **(held or {}),
        }  # the greatest known, of names whose key was there once
        self._bases: dict[str, int] = {}  # of keys that are ours
        self._forgotten: set[str] = set()  # whose key was gone, and has been waited for since
        self._renew_due_s = 0.0
        self._is_closing = self._lets_go = False
        self._has_use = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="consul:locks", daemon=True),
            threading.Thread(target=self._watch, name="consul:lockwatch", daemon=True),
        ]
        if self._held:
            self._has_use.set()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    # -- for the loop

    def want(self, name: str) -> None:
        with self._changed:
            self._wanted[name] = 0.0
            self._has_use.set()
            self._changed.notify_all()

    def unwant(self, name: str) -> None:
        with self._changed:
            self._wanted.pop(name, None)
            self._changed.notify_all()

    def release(self, name: str) -> None:
        """Harmless when it is not ours."""
        with self._changed:
            self._held.pop(name, None)
            self._leaving[name] = None
            self._changed.notify_all()

    def close(self, *, lets_go: bool) -> None:
        """`join` waits for it. `lets_go`: the session ends now, if Consul answers; else by its TTL, when nobody leads by it any more."""
        with self._changed:
            self._is_closing, self._lets_go = True, lets_go
            self._has_use.set()
            self._changed.notify_all()
        self._watching.abort()

    def join(self, limit_s: float) -> None:
        """After `limit_s` the call that is under way is cut off."""
        for thread in self._threads:
            thread.join(limit_s)
        if any(thread.is_alive() for thread in self._threads):
            self._keeping.abort()
            for thread in self._threads:
                thread.join(limit_s)

    @property
    def fences(self) -> dict[str, int]:
        """The greatest known of each name."""
        with self._changed:
            return dict(self._fences)

    # -- the thread that holds

    def _keep(self) -> None:
        from agentkit.directory.consul_http import RegistryError, RegistryRefused

        while True:
            pause_s = 0.0
            try:
                due_s = self._round()
            except RegistryError as exc:
                pause_s = self._failed(str(exc), REFUSED_S if isinstance(exc, RegistryRefused) else 0.0)
            except Exception:
                log.exception("locks.failed")
                pause_s = self._failed("an error of our own, see the log", REFUSED_S)
            else:
                self.problem = ""
                self._backoff.succeeded()
            with self._changed:
                if self._is_closing:
                    break
                if pause_s:
                    self._changed.wait_for(lambda: self._is_closing, pause_s)
                elif not self._is_due():
                    self._changed.wait_for(self._is_due, None if due_s is None else max(0.0, due_s - now_s()))
        self._end()

    def _is_due(self) -> bool:
        return self._is_closing or bool(self._leaving) or any(at_s <= now_s() for at_s in self._wanted.values())

    def _round(self) -> float | None:
        """Everything that is to be done now; when to look again, if nothing happens."""
        with self._changed:
            is_used = bool(self._wanted or self._held or self._leaving)
            if not is_used and not self._is_closing:
                self._has_use.clear()
        if not is_used:
            self._put_down()
            return None
        if self.session and now_s() >= self._renew_due_s:
            self._renew()
        for name in tuple(self._leaving):
            if self.session:
                self._keeping.release(self._prefix + name, _value("", self._bases.get(name, 0)), self.session)
            with self._changed:
                self._leaving.pop(name, None)
        with self._changed:
            due = [name for name, at_s in self._wanted.items() if at_s <= now_s()]
        for name in due:
            self._try(name)
        with self._changed:
            at_s = [it for it in self._wanted.values() if it != _NEVER]
            if self.session:
                at_s.append(self._renew_due_s)
            return min(at_s, default=None)

    def _renew(self) -> None:
        sent_s = now_s()
        if self._keeping.renew(self.session):
            self._renewed(sent_s)
            return
        with self._changed:
            lost, self._held = tuple(self._held), {}
            self._leaving.clear()
            self._forgotten.clear()  # if Consul has lost its data once more, somebody else may have led in between
            self.session, self.until_s = "", None
        log.warning("locks.session_over", leaders=len(lost))
        for name in lost:
            self._on_lost(name, "its session with Consul is over")

    def _renewed(self, sent_s: float) -> None:
        self._renew_due_s = sent_s + self._ttl_s * RENEW_PART
        self.until_s = sent_s + self._ttl_s * (1.0 - MARGIN_PART)
        self._on_renewed()

    def _try(self, name: str) -> None:
        key = self._prefix + name
        if not self.session:
            sent_s = now_s()
            self.session = self._keeping.open_session(
                f"agentkit leaders of {self._owner}", round(self._ttl_s), LOCK_DELAY_S
            )
            self._renewed(sent_s)
        found, _ = self._keeping.key(key)
        if found is None and name in self._fences and name not in self._forgotten:
            log.warning("locks.forgotten", leader=name, waits_s=self._ttl_s)
            self._forgotten.add(name)
            self._not_before(name, now_s() + self._ttl_s)
            return
        self._forgotten.discard(name)
        base, known = 0, self._fences.get(name, 0)
        if found is not None:
            if found.session and found.session != self.session:
                self._knows(name, found)
                self._not_before(name, _NEVER)  # until the watch sees it free
                return
            base = _base(found.value)
        if known > base + (found.modify_index if found else 0):
            base = known
        is_ours = self._keeping.acquire(key, _value(self._owner, base), self.session)
        held = self._keeping.key(key)[0]
        if held is not None:
            self._knows(name, held)
        if not is_ours or held is None or held.session != self.session:
            self._not_before(name, now_s() + TRY_AGAIN_S)
            return
        self._bases[name] = base
        fence = base + held.modify_index
        with self._changed:
            if name not in self._wanted:
                self._leaving[name] = None
                return
            del self._wanted[name]
            self._held[name] = _Mine(fence, held.modify_index)
        self._on_got(name, fence)

    def _knows(self, name: str, key: Any) -> None:
        fence = _base(key.value) + key.modify_index
        with self._changed:
            self._forgotten.discard(name)
            if fence <= self._fences.get(name, 0):
                return
            self._fences[name] = fence
        self._on_known()

    def _not_before(self, name: str, at_s: float) -> None:
        with self._changed:
            if name in self._wanted:
                self._wanted[name] = at_s

    def _put_down(self) -> None:
        """Nobody leads or wants to: a session that is not there need not be renewed."""
        if self.session:
            self._keeping.close_session(self.session)
            self.session, self.until_s = "", None

    def _end(self) -> None:
        from agentkit.directory.consul_http import RegistryError

        try:
            if self.session and self._lets_go:
                self._keeping.close_session(self.session)
                self.session = ""
        except RegistryError as exc:
            log.warning(
                "locks.left", error=str(exc), hint=f"they are free {self._ttl_s:g} to {2 * self._ttl_s:g} s from now"
            )
        self._keeping.close()

    def _failed(self, why: str, at_least_s: float) -> float:
        if why != self.problem:
            log.warning("locks.away", error=why)
        self.problem = why
        return max(self._backoff.failed(), at_least_s)

    # -- the thread that watches

    def _watch(self) -> None:
        from agentkit.directory.consul_http import RegistryError

        backoff, index = Backoff(Random().random), 0
        while self._has_use.wait() and not self._is_closing:
            began_s = now_s()
            try:
                keys, told = self._watching.keys(self._prefix, index, WAIT_S)
            except RegistryError:
                index, pause_s = 0, backoff.failed()
            else:
                next_ = next_index(index, told)
                index = next_.index
                self._see({key.key.removeprefix(self._prefix): key for key in keys}, index)
                backoff.succeeded()
                pause_s = max(0.0, began_s + QUERY_GAP_S - now_s()) if index else QUERY_GAP_S
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing, pause_s)
        self._watching.close()

    def _see(self, keys: Mapping[str, Any], index: int) -> None:
        lost = []
        with self._changed:
            for name, key in keys.items():
                self._knows(name, key)
            for name, at_s in self._wanted.items():
                if at_s == _NEVER and (name not in keys or not keys[name].session):
                    self._wanted[name] = 0.0
            for name, mine in tuple(self._held.items()):
                found = keys.get(name)
                # a stale answer may be from before our lock: only what is newer counts
                if (found is None and index > mine.since) or (
                    found is not None and found.modify_index > mine.since and found.session != self.session
                ):
                    del self._held[name]
                    lost.append(name)
            self._leaving |= {
                name: None
                for name, key in keys.items()  # the node before died before it could let go of it
                if self.session and key.session == self.session and name not in {*self._held, *self._wanted}
            }
            self._changed.notify_all()
        for name in lost:
            self._on_lost(name, "somebody took its lock away in Consul")


_NEVER: Final = float("inf")


def _value(owner: str, base: int) -> bytes:
    """What stands in a key: who has it, for people, and what is added to Consul's numbers."""
    return json.dumps({"machine": owner, "base": base}).encode()


def _base(value: bytes) -> int:
    try:
        return max(0, int(json.loads(value)["base"]))
    except (ValueError, TypeError, KeyError):
        return 0
