"""The node's zygote: connected to, replaced when it dies, renewed when what it has imported is out of date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Final

from agentkit.observe.log import get_logger
from startup.node.exits import Exit
from startup.node.launch import launch_zygote
from startup.node.options import NodeOptions
from startup.node.zygote.link import Forked, ForkOrder, Inherited, ZygoteLink, ZygoteLost

log = get_logger("node.zygote")

#: Pauses before another zygote is started, in seconds: first, doubled up to the last while they go on dying.
RESTART_S: Final = (0.1, 5.0)
#: A zygote that lived this long was a good one, seconds.
STABLE_S: Final = 30.0
#: Preloaded sources are looked at for changes at most so often, in seconds: a whole fleet's start is one look.
LOOK_AT_FILES_S: Final = 1.0


class ZygoteKeeper:
    """Keeps one link up. `on_replaced` is told of every new zygote after the first: it has none of the old one's sockets."""

    def __init__(
        self,
        options: NodeOptions,
        *,
        on_exit: Callable[[Exit], None],
        on_replaced: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._options = options
        self._on_exit = on_exit
        self._on_replaced = on_replaced
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._link: ZygoteLink | None = None
        self._up = asyncio.Event()
        self._preload: tuple[str, ...] = ()
        self._looked_s = -LOOK_AT_FILES_S
        self._renewing: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._began_s = 0.0
        self._pause_s = RESTART_S[0]

    @property
    def pid(self) -> int | None:
        return self._link.facts.pid if self._link else None

    @property
    def refused(self) -> Mapping[str, str]:
        """Modules that are not preloaded although they should be -> why."""
        return self._link.facts.refused if self._link else {}

    async def start(self) -> tuple[Inherited, ...]:
        """Connect to the zygote that is there, else start one; returns what it has of an earlier node."""
        try:
            await self._connect()
        except (OSError, ZygoteLost):
            launch_zygote(self._options, self._preload)
            await self._connect()
        assert self._link is not None
        self._preload = self._link.facts.preload
        return self._link.inventory

    def preload(self, modules: Sequence[str]) -> None:
        """What the fleet wants imported once; takes effect before the next fork."""
        if tuple(modules) != self._preload:
            self._preload = tuple(modules)
            self._looked_s = -LOOK_AT_FILES_S

    async def fork(self, order: ForkOrder, fds: Mapping[str, int], *, urgency: int = 0) -> Forked:
        """ForkFailed says why there is no process. Of those that wait, the one of the highest `urgency` is next."""
        await self._up.wait()
        await self._refresh()
        assert self._link is not None
        return await self._link.fork(order, fds, urgency=urgency)

    def keep(self, key: str, fds: Mapping[str, int]) -> None:
        """Give the zygote dups of an agent's sockets, for the next node."""
        self._tell(lambda link: link.keep(key, fds))

    def forget(self, key: str) -> None:
        self._tell(lambda link: link.forget(key))

    def renew(self) -> None:
        """The zygote takes up the code that is installed now; forks wait for that."""
        if self._link is not None and self._renewing is None:
            self._renewing = self._loop.create_task(self._renew(self._link), name="zygote:renew")

    async def stop(self) -> None:
        """The zygote ends when nothing is left of it; the link is closed."""
        self._end_tasks()
        if self._link is not None:
            link, self._link = self._link, None
            await _unless_lost(link.stop())
            link.close()

    def leave(self) -> None:
        """The link is closed as if this node had died: the zygote keeps what it has for the next one."""
        self._end_tasks()
        if self._link is not None:
            link, self._link = self._link, None
            link.close()

    def _end_tasks(self) -> None:
        for task in (self._starting, self._renewing):
            if task is not None:
                task.cancel()

    def _tell(self, what: Callable[[ZygoteLink], Coroutine[None, None, None]]) -> None:
        if self._link is not None:
            task = self._loop.create_task(_unless_lost(what(self._link)))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _connect(self) -> None:
        self._link = await ZygoteLink.connect(self._options.places.zygote, on_exit=self._on_exit, on_lost=self._lost)
        self._began_s = self._loop.time()
        self._up.set()

    def _lost(self) -> None:
        """It died: agents run on, and another one is started."""
        log.warning("zygote.lost", pid=self.pid)
        self._link = None
        self._up.clear()
        self._on_lost()
        if self._loop.time() - self._began_s >= STABLE_S:
            self._pause_s = RESTART_S[0]
        self._starting = self._loop.create_task(self._replace(), name="zygote:replace")

    async def _replace(self) -> None:
        while True:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(self._pause_s * 2, RESTART_S[1])
            try:
                launch_zygote(self._options, self._preload)
                await self._connect()
            except (OSError, ZygoteLost) as exc:
                log.error("zygote.start_failed", error=str(exc))
                continue
            log.info("zygote.replaced", pid=self.pid)
            self._on_replaced()
            return

    async def _refresh(self) -> None:
        """Before a fork: renew the zygote when a preloaded file has changed, or other modules are wanted."""
        if self._renewing is None and self._loop.time() - self._looked_s >= LOOK_AT_FILES_S:
            self._looked_s = self._loop.time()
            assert self._link is not None
            stale = self._link.facts.stale_files()
            if stale or set(self._link.facts.preload) | set(self._link.facts.refused) != set(self._preload):
                log.info("zygote.renew", changed=stale[:5], preload=list(self._preload))
                self._renewing = self._loop.create_task(self._renew(self._link), name="zygote:renew")
        if self._renewing is not None:
            await asyncio.shield(self._renewing)
            await self._up.wait()

    async def _renew(self, link: ZygoteLink) -> None:
        try:
            with suppress(ZygoteLost):  # then it is being replaced, and the new one imports what is wanted
                await link.renew(self._preload)
        finally:
            self._renewing = None


async def _unless_lost(word: Coroutine[None, None, None]) -> None:
    """What is told to a zygote that dies meanwhile need not be told."""
    with suppress(ZygoteLost):
        await word
