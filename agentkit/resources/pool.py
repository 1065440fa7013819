"""`self.resources`: what is dear to load, loaded when it is first used, once for all who use it, within a limit of memory.

Everything happens on the agent's event loop, so there are no locks; threads ask the loop. What blocks (loaders and unloaders that are
plain `def`) runs on threads."""

from __future__ import annotations

import asyncio
import contextvars
import difflib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from agentkit.clock import now_s
from agentkit.errors import ConfigError, ResourceFailed, ResourcesFull
from agentkit.observe.log import get_logger
from agentkit.resources.mapped import mapped, unmap
from agentkit.resources.shelf import Shelf
from agentkit.resources.sizes import size_of
from agentkit.resources.threads import Threads
from agentkit.units import size_bytes

log = get_logger("agentkit.resources")

#: How long a load waits until others let go of what they use, in seconds, when there is no room for it.
ROOM_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class ResourceStatistics:
    """A pool at one moment; the totals since it was made."""

    limit_bytes: int | None
    used_bytes: int  #: what is in memory, and what room is kept for while it is loaded
    loaded: tuple[str, ...]
    pinned: int  #: resources in use now
    hits_total: int  #: uses that found it loaded
    loads_total: int
    failures_total: int  #: loads that raised
    evictions_total: int  #: unloaded to make room for another
    releases_total: int  #: unloaded because the agent fell asleep


class _Resource:
    """One that is defined."""

    __slots__ = ("is_loaded", "keep", "leaving", "load", "loading", "name", "size", "unload", "value", "waiting")

    def __init__(
        self, name: str, load: Callable[[], Any], size: int | None, unload: Callable[[Any], Any] | None, *, keep: bool
    ) -> None:
        self.name, self.load, self.size, self.unload, self.keep = name, load, size, unload, keep
        self.value: Any = None
        self.is_loaded = False
        self.loading: asyncio.Task[Any] | None = None
        self.waiting = 0  #: for the load that is under way
        self.leaving: asyncio.Task[None] | None = None


class ResourcePool:
    """Of one agent; `get` and `use` from any thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit_bytes: int | None = None,
        until_end_of_call: Callable[[Callable[[], None]], bool] = lambda _: False,
        left_s: Callable[[], float | None] = lambda: None,
        on_load: Callable[[], None] = lambda: None,
        on_failed: Callable[[str, BaseException], None] = lambda *_: None,
    ) -> None:
        """`until_end_of_call`: has something called when the call being handled is over; False outside of calls. `left_s`: how long a
        thread may wait. `on_load`: something is about to be loaded. `on_failed`: a loader or unloader raised."""
        self._shelf = Shelf(limit_bytes)
        self._resources: dict[str, _Resource] = {}
        self._until_end, self._on_load, self._on_failed = until_end_of_call, on_load, on_failed
        self._loop = loop
        self._freed = asyncio.Event()
        self._threads = Threads(loop, left_s)
        self._hits = self._loads = self._failures = self._evictions = self._releases = 0

    # -- for authors --------------------------------------------------------------------------------------------------

    def define(
        self,
        name: str,
        load: Callable[[], Any],
        *,
        size: str | int | None = None,
        unload: Callable[[Any], Any] | None = None,
        keep: bool = False,
    ) -> None:
        """From now on there is `name`; `load` makes it when somebody first uses it: on a thread when it is plain `def`, on the loop when
        it is `async def`. `size` ("200Mi", or bytes): what it needs; without it that is measured when it is there, too late to make
        room beforehand. `unload` gets it when it goes (default: a mapped file is closed, anything else forgotten). `keep`: not
        released when the agent sleeps. On the loop, or before the agent runs. ConfigError: there is one of that name already."""
        if name in self._resources:
            raise ConfigError(at="resources.define", got=name, want="a name that is not taken yet")
        declared = None if size is None else size_bytes(size, at=f"size of resource {name}")
        limit = self._shelf.limit
        if declared is not None and limit is not None and declared > limit:
            want, fix = f"at most resource_memory, {limit:,} bytes", "raise `resource_memory` in the fleet file"
            raise ConfigError(at=f"size of resource {name}", got=f"{declared:,} bytes", want=want, fix=fix)
        self._resources[name] = _Resource(name, load, declared, unload, keep=keep)

    def define_file(self, name: str, path: str | os.PathLike[str], *, keep: bool = False) -> None:
        """`name` is that file, mapped into memory, read-only (resources.mapped)."""
        self.define(name, lambda: mapped(path), keep=keep)

    def get(self, name: str) -> Any:
        """The resource, loaded if it is not: `await self.resources.get("model-x")` on the event loop, and without `await` in threads
        (plain `def` handlers).

        Inside a handler it stays loaded until the handler's call is over; elsewhere it may be unloaded as soon as it is returned:
        `use` says for how long it is needed. Raises ResourceFailed when its loader raises (the next one tries again), ResourcesFull
        when what others use leaves no room for it in time, ConfigError for a name that nobody defined."""
        getting = self._get(name)
        return getting if self._is_on_loop() else self._threads.result_of(getting, name)

    def use(self, name: str) -> Lease:
        """The same for a block, within which it stays loaded: `async with self.resources.use("model-x") as model:`, or `with` in
        threads."""
        return Lease(self, name)

    def statistics(self) -> ResourceStatistics:
        """What it holds now and what it has done."""
        loaded = tuple(one.name for one in self._resources.values() if one.is_loaded)
        return ResourceStatistics(
            self._shelf.limit, self._shelf.total, loaded, self.pinned,
            self._hits, self._loads, self._failures, self._evictions, self._releases,
        )  # fmt: skip

    # -- for the runtime ----------------------------------------------------------------------------------------------

    @property
    def pinned(self) -> int:
        """Resources in use, those that are being loaded among them."""
        return self._shelf.pinned

    async def release(self) -> None:
        """The agent sleeps: what nobody uses goes, but for what was defined with `keep`."""
        going = [one for name in self._shelf.idle() if not (one := self._resources[name]).keep and one.is_loaded]
        self._releases += len(going)
        for one in going:
            self._begin_unloading(one)
        await asyncio.gather(*(one.leaving for one in going if one.leaving is not None))

    async def close(self) -> None:
        """The agent has stopped: everything goes."""
        for one in self._resources.values():
            if one.loading is not None:
                one.loading.cancel()
            if one.is_loaded:
                self._begin_unloading(one)
        busy = [task for one in self._resources.values() for task in (one.loading, one.leaving) if task is not None]
        await asyncio.gather(*busy, return_exceptions=True)

    # -- on the loop --------------------------------------------------------------------------------------------------

    async def _get(self, name: str) -> Any:
        value = await self._acquire(name)
        if not self._until_end(lambda: self._give_back(name)):
            self._give_back(name)
        return value

    async def _acquire(self, name: str) -> Any:
        """Pinned from here on, until `_give_back`."""
        one = self._known(name)
        if one.is_loaded:
            self._shelf.pin(name)
            self._hits += 1
            return one.value
        if one.loading is None:
            # in a context of its own: it is not the call's that happens to be the first, nor ends with that one's deadline
            load = self._load(one)
            one.loading = self._loop.create_task(load, name=f"resources:load {name}", context=contextvars.Context())
            one.loading.add_done_callback(_forget_outcome)
        loading = one.loading
        one.waiting += 1  # it comes pinned for each who waits
        try:
            return await asyncio.shield(loading)
        except (ResourceFailed, ResourcesFull) as error:
            raise type(error)(*error.args) from error.__cause__  # each who waited has one of their own
        except BaseException:
            if not loading.done():
                one.waiting -= 1
            elif not loading.cancelled() and loading.exception() is None:
                self._give_back(name)
            raise

    def _give_back(self, name: str) -> None:
        if name in self._shelf:
            self._shelf.unpin(name)
            self._freed.set()
            self._evict()

    async def _load(self, one: _Resource) -> Any:
        self._on_load()
        try:
            if one.leaving is not None:
                await asyncio.wait({one.leaving})
            await self._make_room(one)
            self._loads += 1
            began_s = now_s()
            try:
                value = await _run(one.load)
            except (Exception, SystemExit) as exc:
                self._failures += 1
                self._on_failed(one.name, exc)
                log.warning("resource.failed", resource=one.name, exc_info=exc)
                raise ResourceFailed(f"{one.name}: its loader raised {type(exc).__name__}: {exc}") from exc
            size = size_of(value) if one.size is None else one.size
            one.value, one.is_loaded = value, True
            self._shelf.put(one.name, size, pins=one.waiting)
            log.info("resource.loaded", resource=one.name, size_bytes=size, took_s=round(now_s() - began_s, 3))
            if self._shelf.limit is not None and size > self._shelf.limit:
                log.warning("resource.too_large", resource=one.name, size_bytes=size, limit_bytes=self._shelf.limit)
            self._evict()
            return value
        finally:
            one.loading, one.waiting = None, 0
            if not one.is_loaded:
                self._shelf.drop(one.name)
                self._freed.set()

    async def _make_room(self, one: _Resource) -> None:
        """Its place is kept, pinned, from here on. ResourcesFull: there is none."""
        size = one.size or 0
        ends_s = now_s() + ROOM_WAIT_S
        while self._shelf.excess(size):
            victim = self._shelf.victim(size)
            if victim is not None:
                self._evictions += 1
                await asyncio.wait({self._begin_unloading(self._resources[victim])})
                continue
            self._freed.clear()
            try:
                async with asyncio.timeout(ends_s - now_s()):
                    await self._freed.wait()
            except TimeoutError:
                in_use = f"{self._shelf.total:,} of {self._shelf.limit:,} bytes are in use"
                why = f"no room for {size:,} bytes within {ROOM_WAIT_S:g} s: {in_use}"
                raise ResourcesFull(f"{one.name}: {why}") from None
        self._shelf.put(one.name, size, pins=1)

    def _evict(self) -> None:
        """What was measured only when it was there may be too much: others go, as far as nobody uses them."""
        while (victim := self._shelf.victim()) is not None:
            self._evictions += 1
            self._begin_unloading(self._resources[victim])

    def _begin_unloading(self, one: _Resource) -> asyncio.Task[None]:
        """Nobody gets it from here on; its room is free when it is gone."""
        value, one.value, one.is_loaded = one.value, None, False
        self._shelf.leave(one.name)
        one.leaving = self._loop.create_task(self._unload(one, value), name=f"resources:unload {one.name}")
        return one.leaving

    async def _unload(self, one: _Resource, value: Any) -> None:
        try:
            if one.unload is not None:
                await _run(one.unload, value)
            else:
                unmap(value)
        except (Exception, SystemExit) as exc:
            self._on_failed(one.name, exc)
            log.warning("resource.unload_failed", resource=one.name, exc_info=exc)
        finally:
            del value
            one.leaving = None
            self._shelf.drop(one.name)
            self._freed.set()

    def _known(self, name: str) -> _Resource:
        found = self._resources.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._resources, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "define it: @resource, or self.resources.define"
            raise ConfigError(at="resources", got=name, want=f"one of {', '.join(self._resources) or 'none'}", fix=fix)
        return found

    def _is_on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False


class Lease:
    """See ResourcePool.use. May be entered again and again, and by several at once."""

    def __init__(self, pool: ResourcePool, name: str) -> None:
        self._pool, self._name = pool, name

    async def __aenter__(self) -> Any:
        return await self._pool._acquire(self._name)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool._give_back(self._name)

    def __enter__(self) -> Any:
        pool, name = self._pool, self._name
        if pool._is_on_loop():
            want = f'`async with self.resources.use("{name}")`'
            raise ConfigError(at="resources.use", got="`with` on the event loop, which would block it", want=want)
        return pool._threads.result_of(pool._acquire(name), name, unwanted=lambda: pool._give_back(name))

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool._threads.tell(lambda: self._pool._give_back(self._name))


async def _run(function: Callable[..., Any], *arguments: Any) -> Any:
    """On the loop when it is `async def`, else on a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    result = await asyncio.to_thread(_without_stop_iteration, function, arguments)
    return await result if inspect.isawaitable(result) else result


def _without_stop_iteration(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A future can't hold StopIteration: who waits would wait for ever."""
    try:
        return function(*arguments)
    except StopIteration as exc:
        raise RuntimeError("it raised StopIteration") from exc


def _forget_outcome(task: asyncio.Task[Any]) -> None:
    """Who waits has its own way to hear of it; perhaps nobody does any more."""
    if not task.cancelled():
        task.exception()
