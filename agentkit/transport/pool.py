"""Raw ZeroMQ sockets for authors, lent and taken back: `with self.sockets.lease(zmq.REQ, "tcp://...") as s:`.

For peers that are no agents. Opening a socket and its connection for each request costs a hundred times the request; one socket that
several threads share is an error that ZeroMQ does not report. So: each lease has a socket to itself, and the next lease gets it again if it
was left as it was found."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import zmq

from agentkit.clock import now_s
from agentkit.errors import ConfigError, PoolClosed, PoolFull
from agentkit.resilience.deadline import DEFAULT_TIMEOUT_S, Deadline
from agentkit.transport import context

#: Sockets of one pool, lent and idle; each has a descriptor or two.
MAX_SOCKETS: Final = 64
#: An unused socket is closed after so long, in seconds.
IDLE_S: Final = 60.0
#: What was sent gets so long to leave when its socket is closed, in ms.
LINGER_MS: Final = 200

_REASONS: Final = {
    zmq.REP: "it answers others: it needs one owner that reads it all the time",
    zmq.ROUTER: "it answers others: it needs one owner that reads it all the time",
    zmq.PUB: "who subscribes connects in its own time, so the first messages of every lease would be lost; use self.publish",
    zmq.XPUB: "who subscribes connects in its own time, so the first messages of every lease would be lost; use self.publish",
    zmq.SUB: "its subscriptions, and what arrives between leases, belong to one owner; use @subscribe",
    zmq.XSUB: "its subscriptions, and what arrives between leases, belong to one owner; use @subscribe",
    zmq.PULL: "while it lies idle it would go on taking its share of the messages, and nobody would read them",
    zmq.PAIR: "it belongs to exactly one other socket",
}  # fmt: skip
#: What may be set within a lease: put back to the default with the next one.
_RESET: Final = frozenset({int(zmq.RCVTIMEO), int(zmq.SNDTIMEO), int(zmq.LINGER)})


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A pool at one moment; the totals since it was made."""

    limit: int  #: sockets that may be open at once
    leased: int  #: in use now
    idle: int  #: open, in use by nobody
    waiting: int  #: threads that wait for one
    opened_total: int
    reused_total: int  #: leases that got a socket that was open already
    discarded_total: int  #: closed after a lease: it failed, was left out of step, or was changed
    expired_total: int  #: closed because unused, or to make room for another endpoint
    refused_total: int  #: leases that ended by PoolFull


_Key = tuple[int, str, tuple[tuple[int, Any], ...]]


class LeasedSocket(zmq.Socket[bytes]):
    """A socket that knows whether it can be lent again."""

    _sent = 0
    _received = 0
    _is_half_sent = False
    _is_changed = False

    def send(self, data: Any, flags: int = 0, *args: Any, **kwargs: Any) -> Any:
        result = super().send(data, flags, *args, **kwargs)
        self._is_half_sent = bool(flags & zmq.SNDMORE)
        self._sent += not self._is_half_sent
        return result

    def recv(self, *args: Any, **kwargs: Any) -> Any:
        frame = super().recv(*args, **kwargs)
        if not super().get(zmq.RCVMORE):
            self._received += 1
        return frame

    def set(self, option: int, value: Any) -> None:
        super().set(option, value)
        if int(option) not in _RESET:
            self._is_changed = True

    def setsockopt(self, option: int, value: Any) -> None:
        self.set(option, value)

    def connect(self, addr: str) -> Any:
        self._is_changed = True
        return super().connect(addr)

    def disconnect(self, addr: Any) -> Any:
        self._is_changed = True
        return super().disconnect(addr)

    def bind(self, addr: str) -> Any:
        raise ConfigError(
            at="a leased socket",
            got=f"bind({addr!r})",
            want="sockets that connect",
            fix="keep one of your own for what you serve",
        )

    def _lend(self, timeout_ms: int) -> None:
        self._sent = self._received = 0
        for option, value in ((zmq.RCVTIMEO, timeout_ms), (zmq.SNDTIMEO, timeout_ms), (zmq.LINGER, LINGER_MS)):
            super().set(option, value)
        self._is_changed = False

    def _is_in_step(self) -> bool:
        """Whether the next lease finds it as this one did: nothing half sent, nothing unread, every request answered."""
        if self.closed or self._is_changed or self._is_half_sent:
            return False
        if self.type == zmq.PUSH:
            return True
        return (
            self._sent == self._received
            and not super().get(zmq.RCVMORE)
            and not int(super().get(zmq.EVENTS)) & zmq.POLLIN
        )


class SocketPool:
    """Thread-safe; who makes it closes it. All sockets live in the process's one context."""

    def __init__(
        self, *, limit: int = MAX_SOCKETS, idle_s: float = IDLE_S, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """`limit`: open sockets, lent and idle. `idle_s`: an unused one is closed after so many seconds, by a timer of `loop` that exists
        only while something is idle; without a loop, when the pool is used next."""
        if limit < 1:
            raise ConfigError(at="SocketPool(limit=)", got=limit, want="1 or more")
        self._limit, self._idle_s, self._loop = limit, idle_s, loop
        self._lock = threading.Condition()
        self._idle: dict[_Key, list[tuple[LeasedSocket, float]]] = {}  # the last one was used last
        self._leased: set[LeasedSocket] = set()
        self._is_closed = False
        self._is_timed = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiting = self._opened = self._reused = self._discarded = self._expired = self._refused = 0

    @contextlib.contextmanager
    def lease(
        self,
        kind: int,
        endpoint: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        options: Mapping[int, Any] | None = None,
    ) -> Iterator[zmq.Socket[bytes]]:
        """A connected socket (REQ, DEALER or PUSH) for this thread and this block only.

        Waits for at most `timeout` seconds while all are in use, then raises PoolFull; on an event loop it does not wait at all. The same
        `timeout` is the socket's RCVTIMEO and SNDTIMEO, which may be set anew in the block. `options`: set before it connects.
        Afterwards it is kept for the next lease, unless the block raised, a request has no answer yet, something is unread, or
        other options or endpoints were set: then it is closed. PoolClosed once the agent has stopped."""
        _check(kind)
        key = (int(kind), endpoint, tuple(sorted((int(option), value) for option, value in (options or {}).items())))
        sock = self._take(key, Deadline.after(0.0 if _on_a_loop() else timeout))
        is_kept = False
        try:
            sock._lend(int(timeout * 1000))
            yield sock
            is_kept = sock._is_in_step()
        finally:
            self._give_back(key, sock, is_kept=is_kept)

    def statistics(self) -> PoolStatistics:
        """What it holds now and what it has done."""
        with self._lock:
            return PoolStatistics(
                self._limit, len(self._leased), self._idle_count(), self._waiting,
                self._opened, self._reused, self._discarded, self._expired, self._refused,
            )  # fmt: skip

    @property
    def leased(self) -> int:
        """Sockets that are lent now."""
        with self._lock:
            return len(self._leased)

    def release(self) -> None:
        """Close what is idle now, not only after `idle_s`."""
        with self._lock:
            for key, socks in tuple(self._idle.items()):
                while socks:
                    self._close_idle(key, socks)

    def close(self) -> None:
        """Close what is idle, and let waiting threads go. A socket that is in use now is closed by the thread that has it, at
        the end of its block: no other thread may touch it. On the loop, where there is one."""
        with self._lock:
            self._is_closed = True
            for sock in [sock for socks in self._idle.values() for sock, _ in socks]:
                sock.close(linger=LINGER_MS)
            self._idle.clear()
            self._lock.notify_all()
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, key: _Key, deadline: Deadline) -> LeasedSocket:
        with self._lock:
            self._expire()
            while True:
                if self._is_closed:
                    raise PoolClosed(f"no socket for {key[1]}: the pool is closed, its agent stops")
                if socks := self._idle.get(key):
                    sock, _ = socks.pop()
                    self._reused += 1
                    break
                if len(self._leased) + self._idle_count() < self._limit or self._make_room():
                    sock = _opened(key)
                    self._opened += 1
                    break
                self._waiting += 1
                has_come = self._lock.wait(deadline.left_s())
                self._waiting -= 1
                if not has_come and deadline.has_passed():
                    self._refused += 1
                    raise PoolFull(key[1], self._limit)
            self._leased.add(sock)
            return sock

    def _give_back(self, key: _Key, sock: LeasedSocket, *, is_kept: bool) -> None:
        with self._lock:
            self._leased.discard(sock)
            if is_kept and not self._is_closed:
                self._idle.setdefault(key, []).append((sock, now_s()))
            else:
                self._discarded += not is_kept
                # after a failure nobody wants what was not sent yet
                sock.close(linger=LINGER_MS if is_kept or not sock._received < sock._sent else 0)
            self._expire()
            self._lock.notify()
            is_to_be_timed = self._loop is not None and not self._is_timed and bool(self._idle_count())
            self._is_timed = self._is_timed or is_to_be_timed
        if is_to_be_timed and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; the pool is about to be closed
                self._loop.call_soon_threadsafe(self._set_timer)

    def _idle_count(self) -> int:
        return sum(map(len, self._idle.values()))

    def _expire(self) -> None:
        """Close what has been unused for long."""
        before_s = now_s() - self._idle_s
        for key, socks in tuple(self._idle.items()):
            while socks and socks[0][1] <= before_s:
                self._close_idle(key, socks)

    def _make_room(self) -> bool:
        """Close what has been unused for longest, of whichever endpoint; whether there was anything."""
        oldest = min(
            ((socks[0][1], key) for key, socks in self._idle.items() if socks), default=None, key=lambda found: found[0]
        )
        if oldest is None:
            return False
        self._close_idle(oldest[1], self._idle[oldest[1]])
        return True

    def _close_idle(self, key: _Key, socks: list[tuple[LeasedSocket, float]]) -> None:
        socks.pop(0)[0].close(linger=LINGER_MS)
        self._expired += 1
        if not socks:
            del self._idle[key]

    def _set_timer(self) -> None:
        self._timer = None
        with self._lock:
            self._expire()
            uses = [socks[0][1] for socks in self._idle.values() if socks]
            self._is_timed = bool(uses) and not self._is_closed
            if self._is_timed and self._loop is not None:
                self._timer = self._loop.call_later(max(0.0, min(uses) + self._idle_s - now_s()), self._set_timer)


def _check(kind: int) -> None:
    if kind in (zmq.REQ, zmq.DEALER, zmq.PUSH):
        return
    try:
        name = zmq.SocketType(kind).name
    except ValueError:
        name = repr(kind)
    reason = next(
        (reason for refused, reason in _REASONS.items() if refused == kind), "its messages depend on one another"
    )
    raise ConfigError(
        at="sockets.lease", got=name, want="REQ, DEALER or PUSH", fix=f"a {name} socket can't be lent: {reason}"
    )


def _opened(key: _Key) -> LeasedSocket:
    kind, endpoint, options = key
    try:
        sock: LeasedSocket = context.context().socket(kind, socket_class=LeasedSocket)
    except zmq.ZMQError as exc:
        raise context.no_socket_left(exc) from exc
    try:
        sock.ipv6 = True
        for option, value in options:
            sock.set(option, value)
        sock.connect(endpoint)
    except (zmq.ZMQError, TypeError) as exc:
        sock.close(linger=0)
        raise ConfigError(
            at="sockets.lease",
            got=f"{endpoint}: {exc}",
            want="an endpoint such as tcp://127.0.0.1:5555, and options of ZeroMQ",
        ) from exc
    return sock


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
