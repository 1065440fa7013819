"""One process of the floor: event loop, adopted ROUTER that echoes, health app, READY. No agent, no order, no calls.

Run by floor.py through our zygote, in the place of an agent."""

from __future__ import annotations

import asyncio
import os
import time

import uvloop
import zmq

from agentkit.agent.telling import RETRY_S
from agentkit.health import http
from agentkit.health.checks import Verdict
from agentkit.transport import adopt, context, frames
from agentkit.transport.notify import Notifier, Outcome
from agentkit.transport.reader import Reader

BEGAN_S = time.monotonic()


class View:
    """What the health app shows: as little as it asks for."""

    def report(self) -> http.HealthReport:
        now_s = time.monotonic()
        return http.HealthReport(
            name="floor", instance="floor", machine="bench", incarnation=0, phase="ready", started=True, ready=True,
            now_s=now_s, uptime_s=now_s - BEGAN_S, loop_lag_s=0.0, in_flight=0, last_progress_age_s=None, memory_mb=0.0,
            verdict=Verdict(),
        )  # fmt: skip

    def metrics(self) -> bytes:
        return b""


async def main() -> None:
    listeners = adopt.adopted(os.environ)
    router = context.socket(zmq.ROUTER, max_frame_bytes=1 << 24)
    adopt.bind_adopted(router, listeners["inbox-local"])
    reader = Reader(router, lambda received: frames.send(router, received))
    server = await http.serve(http.application(View()), listeners["http"])
    notifier = Notifier.from_environment(os.environ)
    while notifier.send_now({"READY": 1}) is Outcome.FULL:  # as agents do; one that gave up would be waited for in vain
        await asyncio.sleep(RETRY_S)
    stopped = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(15, stopped.set_result, None)
    await stopped
    await server.close()
    reader.close()
    router.close()


uvloop.run(main())
context.close_context()
