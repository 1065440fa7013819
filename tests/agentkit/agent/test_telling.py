"""What an agent tells its node when the node's queue is full."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from agentkit.agent.telling import ALIVE_RETRIES, Teller
from agentkit.settings import AgentSettings
from agentkit.transport.notify import Notifier, Outcome


def settings() -> AgentSettings:
    return AgentSettings.from_environment({"AGENT_NAME": "Told"}, default_name="Told")


def taken(sock: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sock.recv(4096))
        except BlockingIOError:
            return found


async def test_a_watchdog_message_that_found_no_room_comes_a_little_later(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as node:
        node.bind(str(tmp_path / "n"))
        node.setblocking(False)
        notifier = Notifier(str(tmp_path / "n"))
        while notifier.send_now({"FILLER": 1}) is Outcome.SENT:
            pass
        teller = Teller(notifier, settings())
        teller.alive()
        assert b"WATCHDOG=1" not in taken(node)
        arrived = asyncio.Event()
        asyncio.get_running_loop().add_reader(node, arrived.set)
        async with asyncio.timeout(10):
            await arrived.wait()
        asyncio.get_running_loop().remove_reader(node)
        assert taken(node) == [b"WATCHDOG=1"]
        teller.close()
        notifier.close()


async def test_a_node_that_takes_nothing_is_not_asked_for_ever(tmp_path: Path) -> None:
    tries = 0

    class Stuck(Notifier):
        def send_now(self, fields: object, *, fds: tuple[int, ...] = ()) -> Outcome:  # type: ignore[override]
            nonlocal tries
            tries += 1
            if tries == ALIVE_RETRIES + 1:
                last.set()
            return Outcome.FULL

    last = asyncio.Event()
    teller = Teller(Stuck(None), settings())
    teller.alive()
    async with asyncio.timeout(10):
        await last.wait()
    assert teller._alive_timer is None
    teller.close()
