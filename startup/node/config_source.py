"""Where Consul's word over agents' config comes from: one query for the whole node, on a thread of its own, that waits for changes.

What was read is kept on disk: a node that starts while Consul is away goes on with what was known."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

import msgpack

from agentkit.clock import now_s
from agentkit.directory.pacing import QUERY_GAP_S, Backoff, next_index
from agentkit.observe.log import get_logger
from startup.node.paths import Places, write_atomically
from startup.node.registry.registry import client_of
from startup.plan.overrides import Overrides, Read, read
from startup.spec.fleet import ConsulAccess, Fleet

log = get_logger("node.configs")

#: The first processes of a node wait so long for Consul's word, in seconds.
FIRST_S: Final = 1.0
#: One query waits so long for a change, in seconds.
WAIT_S: Final = 60.0
#: The end of the node waits so long for its thread, in seconds.
CLOSE_S: Final = 3.0


class ConfigSource:
    """Belongs to the loop. Without `config_prefix` in the fleet file there is nothing: no thread, no query."""

    def __init__(self, places: Places, on_changed: Callable[[frozenset[str]], None]) -> None:
        """`on_changed`: names of agents over whose config something else is said now."""
        self.overrides: Overrides = {}
        self._file = places.state / "overrides.msgpack"
        self._on_changed = on_changed
        self._loop = asyncio.get_running_loop()
        self._access: ConsulAccess | None = None
        self._watch: _Watch | None = None
        self._first: asyncio.Future[None] | None = None
        self._problems: tuple[str, ...] = ()
        self._ending: list[asyncio.Future[Any]] = []

    def revised(self, fleet: Fleet) -> None:
        """Begin, go on, begin anew with other settings, or end, as the fleet says."""
        access = fleet.consul if fleet.consul is not None and fleet.consul.config_prefix else None
        if access == self._access:
            return
        is_first = self._access is None
        self._access = access
        self._end()
        if access is None:
            self._take(Read({}, ()))
            return
        if is_first:
            self.overrides = self._kept(access.config_prefix)
        self._first = self._loop.create_future()
        try:
            self._watch = _Watch(client_of(access), access.config_prefix, self._on_thread)
        except (OSError, ImportError) as exc:
            log.error("config.unusable", error=str(exc), hint="agents have the config of the fleet file")
            self._first.set_result(None)

    async def known(self) -> None:
        if self._first is not None and not self._first.done():
            await asyncio.wait((self._first,), timeout=FIRST_S)
            if not self._first.done():
                self._first.set_result(None)
                log.warning(
                    "config.not_awaited", hint="Consul has not said yet what its KV store says over agents' config"
                )

    async def close(self) -> None:
        self._end()
        await asyncio.gather(*self._ending)

    def _end(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            self._ending.append(self._loop.run_in_executor(None, watch.join, CLOSE_S))

    def _on_thread(self, watch: _Watch, found: Read) -> None:
        self._loop.call_soon_threadsafe(self._seen, watch, found)

    def _seen(self, watch: _Watch, found: Read) -> None:
        if watch is not self._watch or self._access is None:
            return
        self._take(found)
        kept = {"prefix": self._access.config_prefix, "overrides": found.overrides}
        try:
            write_atomically(self._file, msgpack.packb(kept), durable=False)
        except OSError as exc:
            log.error("config.not_kept", file=str(self._file), error=str(exc))

    def _take(self, found: Read) -> None:
        before, self.overrides = self.overrides, found.overrides
        if found.problems != self._problems:
            for problem in found.problems:
                log.error("config.left_out", problem=problem)
            self._problems = found.problems
        if self._first is not None and not self._first.done():
            self._first.set_result(None)
        names = {*before, *self.overrides}
        if changed := frozenset(name for name in names if before.get(name) != self.overrides.get(name)):
            log.info("config.changed", agents=sorted(changed))
            self._on_changed(changed)

    def _kept(self, prefix: str) -> Overrides:
        try:
            kept = msgpack.unpackb(self._file.read_bytes())
            return dict(kept["overrides"]) if kept["prefix"] == prefix else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.warning("config.forgotten", file=str(self._file), error=repr(exc))
            return {}


class _Watch:
    """The thread."""

    def __init__(self, client: Any, prefix: str, on_read: Callable[[_Watch, Read], None]) -> None:
        self._client = client  # agentkit.directory.consul.ConsulClient
        self._prefix = prefix.strip("/") + "/"
        self._on_read = on_read
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._live, name="consul:config", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._client.abort()

    def join(self, limit_s: float) -> None:
        self._thread.join(limit_s)

    def _live(self) -> None:
        from agentkit.directory.consul_http import RegistryError

        random = Random()
        backoff, index, problem = Backoff(random.random), 0, ""
        while not self._closing.is_set():
            began_s = now_s()
            try:
                keys, told = self._client.keys(self._prefix, index, WAIT_S)
            except RegistryError as exc:
                if not self._closing.is_set() and problem != str(exc):
                    problem = str(exc)
                    log.warning("config.not_watched", error=problem)
                index, pause_s = 0, backoff.failed()
            else:
                problem = ""
                next_ = next_index(index, told)
                if next_.index != index or not index:
                    self._tell({key.key: key.value for key in keys})
                index = next_.index
                backoff.succeeded()
                pause_s = max(0.0, began_s + QUERY_GAP_S * (1.0 + 0.1 * random.random()) - now_s())
            self._closing.wait(pause_s)
        self._client.close()

    def _tell(self, items: Mapping[str, bytes]) -> None:
        if not self._closing.is_set():
            self._on_read(self, read(items.items(), self._prefix))
