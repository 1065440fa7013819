"""What authors say about being awake: `@keeps_awake`, `with self.keeps_awake():`, `self.stay_awake(seconds)`. Thread-safe."""

from __future__ import annotations

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class WakeLocks:
    """Whether the agent is awake, and what keeps it so. Falling asleep and a block that begins exclude each other by one lock."""

    def __init__(self) -> None:
        self.is_awake = True
        self.until_s = 0.0  #: `stay_awake`, on the monotonic clock
        self._blocks: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks that are open."""
        with self._lock:
            return tuple(self._blocks.elements())

    def enter(self, name: str) -> bool:
        """A block begins; whether the agent is awake."""
        with self._lock:
            self._blocks[name] += 1
            return self.is_awake

    def leave(self, name: str) -> None:
        with self._lock:
            self._blocks[name] -= 1
            self._blocks += Counter()  # what is zero goes

    def stay(self, until_s: float) -> bool:
        """Not asleep before then; whether the agent is awake."""
        with self._lock:
            self.until_s = max(self.until_s, until_s)
            return self.is_awake

    def fall(self, now_s: float) -> bool:
        """From here on it is not awake, unless something keeps it so: then False."""
        with self._lock:
            if self._blocks or self.until_s > now_s:
                return False
            self.is_awake = False
            return True


class WakeLock:
    """See BaseAgent.keeps_awake."""

    def __init__(
        self, name: str, locks: WakeLocks, wake: Callable[[str], Awaitable[None]], wait: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:  # fmt: skip
        """`wake` waits on the loop until the agent is awake, `wait` does so in a thread (on the loop it only begins it)."""
        self._name, self._wake_locks = name, locks
        self._wake, self._wait, self._ended = wake, wait, ended

    def __enter__(self) -> Self:
        if not self._wake_locks.enter(self._name):
            try:
                self._wait(self._name)
            except BaseException:
                self._wake_locks.leave(self._name)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended()
        self._wake_locks.leave(self._name)

    async def __aenter__(self) -> Self:
        if not self._wake_locks.enter(self._name):
            try:
                await self._wake(self._name)
            except BaseException:
                self._wake_locks.leave(self._name)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace)


def keeps_awake(function: F) -> F:
    """The agent does not fall asleep while this method runs, and is woken first where it sleeps.

    For work that nobody called for: `@every` methods that matter, what `run` does, background tasks. Handlers of calls and events
    need no such mark. `async def`, `async def` with `yield`, or a plain `def` that runs on a thread. Together with other marks in
    either order."""
    name = function.__name__
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(self: Any, *args: Any, **kwargs: Any) -> Any:
            async with self.keeps_awake(name):
                async for value in function(self, *args, **kwargs):
                    yield value

        return stream  # type: ignore[return-value]
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            async with self.keeps_awake(name):
                return await function(self, *args, **kwargs)

        return run  # type: ignore[return-value]

    @functools.wraps(function)
    def block(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.keeps_awake(name):
            return function(self, *args, **kwargs)

    return block  # type: ignore[return-value]
