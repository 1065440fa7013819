"""Waiting for those who can't tell: programs that do not notify until they are ready, externals until they answer.

One task per wait, only while somebody waits; pauses grow, so that what takes a minute is not asked a thousand times."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from agentkit.names import AgentId
from startup.node.probes import http_ok, log_matches, tcp_open
from startup.plan.rows import LOOPBACK
from startup.spec.fleet import AgentSpec, External

#: Pauses between two questions, in seconds: first, then doubled up to the last.
PAUSE_S: Final = (0.05, 2.0)
#: Longest wait for one answer, in seconds.
ANSWER_S: Final = 2.0


class Waits:
    """The probes that run now, by what they are for."""

    def __init__(self) -> None:
        self._tasks: dict[AgentId | str, asyncio.Task[None]] = {}

    def for_program(
        self, spec: AgentSpec, host: str, log_path: str, log_start: int, on_ready: Callable[[], None]
    ) -> None:
        """Probe a program as its spec says; `on_ready` once. Ends with `stop`; its start timeout is not known here.

        `log_start`: the size that its log had before the fork."""
        self.stop(spec.id)
        self._start(spec.id, self._program(spec, host, log_path, log_start), on_ready)

    def for_external(self, external: External, is_wanted: Callable[[], bool], on_answer: Callable[[], None]) -> None:
        """Probe until it answers, or until `is_wanted` says that nobody waits any more."""
        if external.name not in self._tasks:
            self._start(
                external.name, self._external(external, is_wanted), lambda: on_answer() if is_wanted() else None
            )

    def stop(self, what: AgentId | str) -> None:
        task = self._tasks.pop(what, None)
        if task is not None:
            task.cancel()

    def close(self) -> None:
        for what in tuple(self._tasks):
            self.stop(what)

    def _start(self, what: AgentId | str, wait: Awaitable[None], then: Callable[[], None]) -> None:
        async def run() -> None:
            try:
                await wait
            finally:
                if self._tasks.get(what) is asyncio.current_task():
                    del self._tasks[what]
            then()

        self._tasks[what] = asyncio.get_running_loop().create_task(run(), name=f"wait for {what}")

    async def _program(self, spec: AgentSpec, host: str, log_path: str, log_start: int) -> None:
        when = spec.ready
        if when.after_s is not None:
            await asyncio.sleep(when.after_s)
        elif when.log_regex is not None:
            await log_matches(log_path, when.log_regex, start=log_start)
        elif probe := probe_of(spec, host):
            await _until(partial(probe, ANSWER_S))

    async def _external(self, external: External, is_wanted: Callable[[], bool]) -> None:
        async def answers() -> bool:
            if not is_wanted():
                return True
            if external.http is not None:
                return await http_ok(external.http, ANSWER_S)
            host, _, port = (external.tcp or "").rpartition(":")
            return await tcp_open(host.strip("[]"), int(port), ANSWER_S)

        await _until(answers)


def probe_of(spec: AgentSpec, host: str) -> Callable[[float], Awaitable[bool]] | None:
    """How a program can be asked, again and again, each time within the seconds given; None where it shows itself by other means."""
    when = spec.ready
    if when.notify or when.after_s is not None or when.log_regex is not None:
        return None
    if when.http_url is not None:
        base = "" if "://" in when.http_url else f"http://{LOOPBACK}:{spec.health_port or spec.port}"
        return partial(http_ok, base + when.http_url)
    # a program may bind the machine's address only
    return partial(_any_open, tuple(dict.fromkeys((LOOPBACK, host))), when.tcp_port or spec.port)


async def _any_open(hosts: tuple[str, ...], port: int, timeout_s: float) -> bool:
    for host in hosts:
        if await tcp_open(host, port, timeout_s):
            return True
    return False


async def _until(ask: Callable[[], Awaitable[bool]]) -> None:
    pause_s = PAUSE_S[0]
    while not await ask():
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, PAUSE_S[1])
