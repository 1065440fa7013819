"""`@resource`: methods that load what `self.resources` hands out; and that pool, made when somebody first asks for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from agentkit.agent.context import at_end_of_call, serving
from agentkit.agent.decorators import mark, marked
from agentkit.errors import ConfigError
from agentkit.units import size_bytes

if TYPE_CHECKING:
    from agentkit.resources.pool import ResourcePool

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Options of `@resource`."""

    name: str = ""
    size: int | None = None
    unload: str = ""
    keep: bool = False


@overload
def resource(name: F, /) -> F: ...
@overload
def resource(
    name: str = ..., /, *, size: str | int | None = ..., unload: str = ..., keep: bool = ...
) -> Callable[[F], F]: ...
def resource(name: Any = "", /, *, size: str | int | None = None, unload: str = "", keep: bool = False) -> Any:
    """A method that loads what `self.resources.get(name)` returns (default: the method's own name). It takes no arguments.

    It runs when somebody first needs the resource, once for all who do: on a thread when it is plain `def`, on the loop when it is
    `async def`. `size` ("200Mi"): what it needs; else that is measured when it is there. `unload`: name of a method that gets it when
    it goes. `keep`: not released when the agent sleeps. See ResourcePool.define."""
    if callable(name):
        return mark(Resource())(name)
    bytes_ = None if size is None else size_bytes(size, at="@resource(size=)")
    return mark(Resource(name=name, size=bytes_, unload=unload, keep=keep))


class Resources:
    """The pool of one running agent. Most agents never ask, and never pay for it. From any thread."""

    def __init__(
        self,
        agent: Any,
        *,
        limit_bytes: int | None,
        on_load: Callable[[], None],
        on_failed: Callable[[str, BaseException], None],
        on_made: Callable[[ResourcePool], None],
    ) -> None:
        """On the agent's loop. `on_made`: there is a pool from here on."""
        self._agent, self._limit_bytes = agent, limit_bytes
        self._on_load, self._on_failed, self._on_made = on_load, on_failed, on_made
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pool: ResourcePool | None = None

    @property
    def pool(self) -> ResourcePool:
        """ConfigError: a mark of the class is wrong."""
        with self._lock:
            if self._pool is None:
                self._pool = self._made()
                self._on_made(self._pool)
            return self._pool

    @property
    def pinned(self) -> int:
        """Resources in use."""
        return self._pool.pinned if self._pool is not None else 0

    async def release(self) -> None:
        """The agent sleeps."""
        if self._pool is not None:
            await self._pool.release()

    async def close(self) -> None:
        """The agent has stopped."""
        if self._pool is not None:
            await self._pool.close()

    def _made(self) -> ResourcePool:
        from agentkit.resources.pool import ResourcePool

        pool = ResourcePool(
            self._loop,
            limit_bytes=self._limit_bytes,
            until_end_of_call=at_end_of_call,
            left_s=_left_s,
            on_load=self._on_load,
            on_failed=self._on_failed,
        )
        agent = self._agent
        for name, function, options in marked(type(agent), Resource):
            unload = getattr(agent, options.unload, None) if options.unload else None
            if options.unload and not callable(unload):
                raise ConfigError(at=f"@resource {name}(unload=)", got=options.unload, want="the name of a method")
            load = partial(function, agent)
            pool.define(options.name or name, load, size=options.size, unload=unload, keep=options.keep)
        return pool


def _left_s() -> float | None:
    """How much time the call has in whose name this runs."""
    call = serving()
    return None if call is None else max(0.0, call.deadline.left_s())
