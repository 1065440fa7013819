"""The process of a node: runs one in a loop of its own until it ends, and goes on with the code that it has when its heir does not
come up. If it dies instead, the zygote starts the next one, which begins here."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

import setproctitle
import uvloop

import startup.spec.wire  # noqa: F401 - takes 40 ms, and is needed as soon as a revision comes: imported in the boot process
from agentkit.observe import log as logs
from agentkit.transport.context import close_context
from startup.node.heirs import Heir
from startup.node.node import Node
from startup.node.options import NodeOptions
from startup.node.paths import Lock

log = logs.get_logger("node")


def run(options: NodeOptions) -> int:
    """Be the node of `options.places` until it ends; the exit code. Called after the zygote was forked; one thread exists."""
    places = options.places
    setproctitle.setproctitle(f"agentkit: node {places.cluster}/{places.machine}")
    logs.configure(
        service="node", fmt="auto" if options.foreground else "json", level=os.environ.get("AGENTKIT_LOG_LEVEL", "INFO")
    )
    lock = options.lock or Lock(places)
    options = options._replace(lock=lock)
    try:
        while True:
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    outcome = runner.run(_live(options))
            finally:
                close_context()
            if isinstance(outcome, int):
                return outcome
            why = outcome.install()
            if not why:
                # whoever runs us in a terminal or a container waits for this process; systemd has been told of the other
                return outcome.stay() if options.foreground and "NOTIFY_SOCKET" not in os.environ else 0
            lock.renew()
            log.error("upgrade.failed", error=why)
            options = options._replace(control_fd=outcome.control_fd, channel=None, upgrade_error=why)
    finally:
        lock.release()


async def _live(options: NodeOptions) -> int | Heir:
    """The exit code, or who has to take over."""
    node = Node(options)
    try:
        await node.start()
        heir = await node.ended
    except Exception as exc:
        log.exception("node.failed")
        if options.channel is not None:
            with suppress(OSError):
                options.channel.send(f"{type(exc).__name__}: {exc}".encode()[:1000])
        return 1  # without `stop`: agents run on, and the zygote tries another node
    await node.stop(is_handed_on=heir is not None)
    return 0 if heir is None else heir
