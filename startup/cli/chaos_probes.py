"""Calls made all the while, in a thread and loop of their own: counted as answered, slow or failed, with the times of those that failed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from agentkit.client import Client
from agentkit.errors import AgentkitError, ConfigError
from startup.spec.chaos import Probe

#: Failures that are kept with their words; all are counted.
MAX_KEPT: Final = 20
#: How long the first answers are waited for, in seconds.
MET_WITHIN_S: Final = 15.0


@dataclass(slots=True)
class Tally:
    """What came of one probe."""

    call: str
    ok: int = 0
    slow: int = 0  #: answered, late; not among `ok`
    failed: int = 0
    slowest_s: float = 0.0
    failures: list[tuple[float, str]] = field(
        default_factory=list
    )  #: (seconds since the beginning, why), the first ones

    def to_wire(self) -> dict[str, Any]:
        failures = [{"at_s": round(at_s, 3), "error": why} for at_s, why in self.failures]
        counts = {"call": self.call, "ok": self.ok, "slow": self.slow, "failed": self.failed}
        return {**counts, "slowest_s": round(self.slowest_s, 4), "failures": failures}


class Probes:
    """A context manager: entered, every probe has been answered once; left, no call is under way."""

    def __init__(self, probes: Sequence[Probe], node: str) -> None:
        """`node`: path of the control socket of the node whose directory is asked."""
        self.tallies = [Tally(probe.call) for probe in probes]
        self._probes = probes
        self._node = node
        self._began_s = time.monotonic()
        self._met = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    def __enter__(self) -> Self:
        """ConfigError: a method is not idempotent, so its calls could not be repeated; the errors of the first call."""
        if self._probes:
            self._thread.start()
            self._met.wait()
            if self._error is not None:
                self._thread.join()
                raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as exc:  # noqa: BLE001 - told to the thread that waits
            self._error = exc
        finally:
            self._met.set()

    async def _all(self) -> None:
        async with Client(node=self._node) as client:
            for probe in self._probes:
                await _check(client, probe)
            self._over = asyncio.Event()
            self._loop = asyncio.get_running_loop()
            self._began_s = time.monotonic()
            self._met.set()
            pairs = zip(self._probes, self.tallies, strict=True)
            await asyncio.gather(*(self._one(client, probe, tally, self._over) for probe, tally in pairs))

    async def _one(self, client: Client, probe: Probe, tally: Tally, over: asyncio.Event) -> None:
        agent, method = probe.target
        while not over.is_set():
            began_s = time.monotonic()
            try:
                await client.call(agent, method, probe.arguments, timeout=probe.timeout)
            except AgentkitError as exc:
                tally.failed += 1
                if len(tally.failures) < MAX_KEPT:
                    tally.failures.append((began_s - self._began_s, str(exc)[:300]))
            else:
                took_s = time.monotonic() - began_s
                tally.slowest_s = max(tally.slowest_s, took_s)
                if took_s > probe.slow:
                    tally.slow += 1
                else:
                    tally.ok += 1
            try:
                async with asyncio.timeout(max(0.0, probe.every - (time.monotonic() - began_s))):
                    await over.wait()
            except TimeoutError:
                continue


async def _check(client: Client, probe: Probe) -> None:
    agent, method = probe.target
    async with asyncio.timeout(MET_WITHIN_S):
        told = await client.describe(agent)
        known = dict(told["methods"])
        if method not in known or not known[method].get("idempotent"):
            names = ", ".join(sorted(name for name, it in known.items() if it.get("idempotent"))) or "none"
            raise ConfigError(
                at=f"probe {probe.call}",
                got="no such method" if method not in known else "a method that must not run twice",
                want=f"an idempotent method of {agent}: {names}",
                fix="mark it @rpc(idempotent=True) if running it twice does no harm",
            )
        await client.call(agent, method, probe.arguments, timeout=probe.timeout)
