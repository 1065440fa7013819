"""The node's side of the zygote: order forks, hear of exits, keep what the last node left. One connection, one event loop.

All calls are for the loop's own thread. The kernel queues about ten messages, the rest waits here. At most WINDOW orders are on
their way at once, because the kernel counts descriptors that nobody has received yet against our limit.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentkit.errors import AgentkitError
from startup.node.exits import Exit
from startup.node.priority_semaphore import PrioritySemaphore
from startup.node.zygote import wire
from startup.node.zygote.preload import changed

#: Orders sent and not answered: one being done, and the next, so that the zygote never waits. All others stay here, where one that
#: is more urgent can still overtake them: on fleet84's longest chain agents stood 0.4 s behind others with 32.
WINDOW: Final = 2
#: Messages taken in one turn of the loop.
_PER_TURN: Final = 64


class ForkFailed(AgentkitError):
    """The process does not exist; the sentence says why. Also raised for orders that were open when the zygote went."""


class ZygoteLost(AgentkitError, ConnectionError):
    """The zygote went away in the middle of it."""


class Admission(NamedTuple):
    """What holds a process to its limits, and whatever it starts (bounds.py)."""

    cgroups: tuple[str, ...] = ()  #: cgroup.procs files that it writes itself into, first of all
    rlimits: tuple[tuple[str, int], ...] = ()  #: what it takes on (rlimits.py)


#: Of a process that nothing holds.
FREE: Final = Admission()


class ForkOrder(NamedTuple):
    """One process to be. The listening sockets go beside it, in the order of LISTEN_FDS."""

    key: str  #: str(AgentId)
    incarnation: int
    title: str
    env: Mapping[str, str]  #: the whole environment; LISTEN_* are added in the child
    cwd: str
    log_path: str
    target: Mapping[str, Any]  #: asdict of AgentTarget or ProgramTarget
    sys_path: tuple[str, ...] = ()  #: put before the zygote's own
    cpu_affinity: tuple[int, ...] = ()
    nofile: int | None = None  #: soft limit on descriptors; None: what the launcher itself was started with
    umask: int = 0o077
    cgroups: tuple[str, ...] = ()  #: as in Admission
    rlimits: tuple[tuple[str, int], ...] = ()
    user: tuple[int, int, tuple[int, ...]] | None = None  #: uid, gid, groups to become; None: ours


class Forked(NamedTuple):
    pid: int
    pidfd: int  #: the caller's to close


class Inherited(NamedTuple):
    """What the zygote has of one agent from an earlier node; every descriptor is the caller's to close.

    A running process (`pid` is None without one; two of one key while one follows the other), or sockets, or both."""

    key: str
    incarnation: int
    pid: int | None
    pidfd: int | None
    listeners: Mapping[str, int]


class ZygoteFacts(NamedTuple):
    """What is imported in the zygote."""

    pid: int
    preload: tuple[str, ...]
    refused: Mapping[str, str]  #: modules that were to be preloaded and are not -> why
    files: Mapping[str, int]  #: source of preloaded modules -> mtime in ns when it was imported

    def stale_files(self) -> list[str]:
        """Files that changed since: forks would still run what was in them. `ZygoteLink.renew` helps."""
        return changed(self.files)


class ZygoteLink:
    """Made by `connect`."""

    facts: ZygoteFacts
    inventory: tuple[Inherited, ...]

    def __init__(self, sock: socket.socket, on_exit: Callable[[Exit], None], on_lost: Callable[[], None]) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._outgoing: deque[tuple[list[Any], list[int]]] = deque()
        self._orders: dict[int, asyncio.Future[Forked]] = {}
        self._number = 0
        self._line = PrioritySemaphore(WINDOW)
        self._inherited: list[Inherited] = []
        self._facts: asyncio.Future[ZygoteFacts] = self._loop.create_future()
        self._listed: asyncio.Future[None] = self._loop.create_future()
        self._drained = asyncio.Event()
        self._drained.set()
        self._closed = False
        self._loop.add_reader(sock, self._readable)

    @classmethod
    async def connect(
        cls, path: Path | str, *, on_exit: Callable[[Exit], None], on_lost: Callable[[], None]
    ) -> ZygoteLink:
        """Say hello and take over what the zygote has: `facts` and `inventory` are set.

        `on_exit` hears, before this returns, of the last processes that ended (an earlier node may have heard of some: tell them
        apart by incarnation), and then of every one that ends. `on_lost` is called once when the zygote goes, not after `close`.
        OSError: nobody listens there. ZygoteLost: it went."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(str(path))  # a unix socket: answered by the kernel, at once
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        link = cls(sock, on_exit, on_lost)
        try:
            link._send(["hello"])
            link.facts = await link._facts
            await link._listed
        except BaseException:
            link.close()
            raise
        link.inventory = tuple(link._inherited)
        return link

    async def fork(self, order: ForkOrder, fds: Mapping[str, int], *, urgency: int = 0) -> Forked:
        """Fork the process that `order` describes, with dups of `fds` (name -> listening socket); they stay the caller's.
        Of those that wait, the one of the highest `urgency` is next.

        The zygote keeps dups of them under the order's key, in place of any older ones. ForkFailed says why there is no process;
        one that fails later (its program is not there, its import raises) exists for a moment and tells so itself. When the caller
        is cancelled, the process is there nevertheless, and its exit is told."""
        async with self._line.turn(urgency):
            self._number += 1
            number = self._number
            answer: asyncio.Future[Forked] = self._loop.create_future()
            self._orders[number] = answer
            try:
                self._send(["fork", number, order._asdict(), list(fds)], list(fds.values()))
                return await answer
            finally:
                self._orders.pop(number, None)

    async def keep(self, key: str, fds: Mapping[str, int]) -> None:
        """Give a (new) zygote dups of the sockets of `key`, for the next node."""
        self._send(["keep", key, list(fds)], list(fds.values()))
        await self._drained.wait()

    async def forget(self, key: str) -> None:
        """The zygote closes its dups of the sockets of `key`."""
        self._send(["forget", key])
        await self._drained.wait()

    async def renew(self, preload: Sequence[str]) -> ZygoteFacts:
        """Have the zygote replace its own image and import `preload` afresh; its processes and sockets stay. ZygoteLost: it went.

        What is ordered meanwhile waits, and is forked from the new image."""
        self._facts = self._loop.create_future()
        self._send(["renew", list(preload)])
        self.facts = await self._facts
        return self.facts

    async def stop(self) -> None:
        """The zygote starts no node any more, and exits when nothing is left."""
        self._send(["stop"])
        await self._drained.wait()

    def close(self) -> None:
        """Without `stop` before, the zygote takes it that the node died."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        lost = ZygoteLost("the zygote's connection was closed")
        for future in (self._facts, self._listed):
            if not future.done():
                future.set_exception(lost)
                future.exception()  # it may be that nobody waits for it
        for answer in self._orders.values():
            if not answer.done():
                answer.set_exception(ForkFailed("the zygote went away"))
        for _, fds in self._outgoing:
            wire.close_all(fds)
        self._outgoing.clear()
        self._drained.set()

    # -- both directions ---------------------------------------------------------------------------------------------------

    def _send(self, message: list[Any], fds: Sequence[int] = ()) -> None:
        """Send or queue; queued descriptors are dups, since the caller may close its own as soon as we return."""
        if self._closed:
            raise ZygoteLost("the zygote is gone")
        if not self._outgoing and self._sent(message, fds):
            return
        self._outgoing.append((message, [os.dup(fd) for fd in fds]))
        if self._drained.is_set():
            self._drained.clear()
            self._loop.add_writer(self._sock, self._writable)

    def _sent(self, message: list[Any], fds: Sequence[int]) -> bool:
        try:
            wire.send(self._sock, message, fds)
        except BlockingIOError:
            return False
        except OSError:
            return True  # it is gone; the reader sees that, and fails what waits
        return True

    def _writable(self) -> None:
        while self._outgoing:
            message, fds = self._outgoing[0]
            if not self._sent(message, fds):
                return
            wire.close_all(fds)
            self._outgoing.popleft()
        self._drained.set()
        self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        for _ in range(_PER_TURN):
            try:
                received = wire.receive(self._sock)
                if received is not None:
                    self._take(received)
            except BlockingIOError:
                return
            except (OSError, wire.Garbled, LookupError, ValueError, TypeError):
                received = None
            if self._closed:
                return
            if received is None:
                self.close()
                self._on_lost()
                return

    def _take(self, received: wire.Received) -> None:
        verb, *rest = received.message
        if verb == "forked":
            self._forked(rest[0], rest[1], received.fds)
        elif verb == "failed":
            answer = self._orders.get(rest[0])
            if answer is not None and not answer.done():
                answer.set_exception(ForkFailed(rest[1]))
        elif verb == "exit":
            self._on_exit(Exit(**rest[0]))
        elif verb == "facts":
            facts = rest[0] | {"preload": tuple(rest[0]["preload"])}
            if not self._facts.done():
                self._facts.set_result(ZygoteFacts(**facts))
        elif verb == "inventory":
            self._list(rest[0], received)
            if not rest[1] and not self._listed.done():
                self._listed.set_result(None)
        else:
            raise ValueError(f"unknown verb {verb!r}")

    def _forked(self, number: int, pid: int, fds: list[int]) -> None:
        answer = self._orders.get(number)
        if answer is None or answer.done():
            wire.close_all(fds)
            return
        try:
            answer.set_result(Forked(pid, fds[0] if fds else os.pidfd_open(pid)))
        except OSError as exc:  # neither the zygote nor we had a descriptor left, or it is over already
            answer.set_exception(ForkFailed(f"pid {pid} can't be watched: {os.strerror(exc.errno or 0)}"))

    def _list(self, entries: list[Any], received: wire.Received) -> None:
        fds = iter(received.fds)
        for key, incarnation, pid, names in entries:
            pidfd = next(fds, None) if pid else None
            listeners = dict(zip(names, fds, strict=False))  # takes as many as there are names
            self._inherited.append(
                Inherited(key=key, incarnation=incarnation, pid=pid or None, pidfd=pidfd, listeners=listeners)
            )
