"""Exports an agent's error reports to its node: batches over the connection that the directory has, each until the node says that
it is stored.

A node that is away is not asked: its coming back is told (`connected`). Without a node reports stay in the agent's memory."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.errorbus import Batch, ErrorBus
from agentkit.errors import AgentkitError, CallError, Overloaded, Unreachable
from agentkit.observe.log import get_logger
from agentkit.wire.frames import FrameBuffer, pack

log = get_logger("agentkit.errors")

#: From a report until it is sent, in seconds: what comes with it goes with it.
SOON_S: Final = 0.05
#: Between two batches at least, in seconds.
BETWEEN_S: Final = 1.0
#: Until a node that could not take a batch is asked again, in seconds.
AGAIN_S: Final = 5.0
#: How long a node may take to store a batch, in seconds; then the same batch is offered again.
STORED_WITHIN_S: Final = 10.0
#: Between two lines of the log that say how many reports had none, in seconds.
SUMMARY_S: Final = 10.0
#: How long an agent that ends waits for its node, in seconds.
LAST_WORDS_S: Final = 0.5

#: MeshDirectory.ask
Ask = Callable[..., Awaitable[Any]]


class ErrorExporter:
    """Belongs to the running loop; reports come from any thread, also after that loop was closed."""

    def __init__(self, bus: ErrorBus, sender: Mapping[str, Any], ask: Ask | None) -> None:
        """`sender`: who reports, as the node wants to know it. `ask`: None without a node."""
        self._bus = bus
        self._sender = dict(sender)
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._is_woken = False
        self._is_away = False
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None
        self._sent_s = self._said_s = -BETWEEN_S
        bus.on_pending = self._wake
        if bus.waiting:
            self._wake()

    def connected(self) -> None:
        """The node is there (again)."""
        self._is_away = False
        if self._bus.waiting:
            self._begin()

    def close(self) -> None:
        """Nothing is sent from here on; what waits is for `last_words`."""
        self._is_closed = True
        self._bus.on_pending = _nothing
        if self._task is not None:
            self._task.cancel()
        self._summarise()

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: it stays in the bus
                self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._task is None and not self._is_away and not self._is_closed:
            self._task = self._loop.create_task(self._tend(), name="errors")

    async def _tend(self) -> None:
        try:
            await self._deliver() if self._ask is not None else await self._only_count()
        finally:
            self._task = None
        if self._is_woken and not self._is_away:  # something came while the last batch was on its way
            self._begin()

    async def _only_count(self) -> None:
        await asyncio.sleep(SUMMARY_S)
        self._is_woken = False
        self._summarise()

    async def _deliver(self) -> None:
        while True:
            await asyncio.sleep(max(SOON_S, self._sent_s + BETWEEN_S - now_s()))
            self._is_woken = False  # before it is looked: what comes from here on wakes again
            batch = self._bus.batch()
            if batch is None:
                return
            self._sent_s = now_s()
            try:
                await self._send(batch)
            except (Unreachable, TimeoutError) as exc:
                self._is_away = isinstance(exc, Unreachable)
                log.debug("errors.node_away", why=str(exc), waiting=self._bus.waiting)
            except Overloaded as exc:
                log.warning("errors.not_stored", why=exc.message, waiting=self._bus.waiting)
                self._sent_s = now_s() + AGAIN_S - BETWEEN_S
            except CallError as exc:
                self._bus.taken(batch, refused=True)
                log.error("errors.refused", why=exc.message, reports=batch.reports)
            if self._is_away:
                return
            self._summarise()
            if not self._bus.waiting:
                return

    async def _send(self, batch: Batch) -> None:
        assert self._ask is not None
        async with asyncio.timeout(STORED_WITHIN_S):
            await self._ask("report", **self._sender, **batch.to_wire())
        self._bus.taken(batch)

    def _summarise(self) -> None:
        """Say how many reports had no line of their own; now and then."""
        if now_s() - self._said_s >= SUMMARY_S or self._is_closed:
            count = self._bus.unmentioned()
            if count:
                self._said_s = now_s()
                hint = "alike or too many" + ("; `agentkit errors` has them all" if self._ask else "")
                log.warning("errors.suppressed", reports=count, hint=hint)


def last_words(bus: ErrorBus, path: str | None, sender: Mapping[str, Any], limit_s: float = LAST_WORDS_S) -> bool:
    """Hand over what is left when the loop has ended; whether nothing is left now. Blocks, for `limit_s` at most."""
    if not bus.waiting:
        return True
    try:
        if path is not None:
            _say_all(bus, path, sender, time.monotonic() + limit_s)
    except (OSError, AgentkitError, ValueError, TypeError) as exc:
        log.debug("errors.node_away", why=str(exc))
    if bus.waiting and path is not None:
        log.warning("errors.not_told", reports=bus.waiting)
    return not bus.waiting


def _say_all(bus: ErrorBus, path: str, sender: Mapping[str, Any], until_s: float) -> None:
    buffer = FrameBuffer()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(max(0.01, until_s - time.monotonic()))
        sock.connect(path)
        while (batch := bus.batch()) is not None:
            sock.sendall(pack([batch.number, "report", {**sender, **batch.to_wire()}]))
            while bus.batch() is batch:
                sock.settimeout(max(0.01, until_s - time.monotonic()))
                data = sock.recv(65536)
                if not data or time.monotonic() > until_s:
                    return
                for number, kind, _ in buffer.feed(data):
                    if kind == "ok" and number == batch.number:
                        bus.taken(batch)
                    elif kind == "error":
                        return


def _nothing() -> None:
    """What comes now waits for `last_words`."""
