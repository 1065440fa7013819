"""What an agent tells its node when the node's queue is full."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from agentkit.agent.base import BaseAgent
from agentkit.agent.telling import RETRY_S, Teller
from agentkit.runtime import AgentRuntime
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


async def test_who_finds_no_room_for_its_watchdog_message_knows_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as node:
        node.bind(str(tmp_path / "n"))
        node.setblocking(False)
        notifier = Notifier(str(tmp_path / "n"))
        while notifier.send_now({"FILLER": 1}) is Outcome.SENT:
            pass
        teller = Teller(notifier, settings())
        assert not teller.alive()
        assert b"WATCHDOG=1" not in taken(node)
        assert teller.alive()
        assert taken(node) == [b"WATCHDOG=1"]
        teller.close()
        notifier.close()


class Crowded(Notifier):
    """Has no room for the first so many WATCHDOG."""

    def __init__(self, refused: int) -> None:
        super().__init__(None)
        self.outcomes = iter((*[Outcome.FULL] * refused, Outcome.SENT, Outcome.SENT))
        self.enough = asyncio.Event()

    def send_now(self, fields: Mapping[str, object], *, fds: tuple[int, ...] = ()) -> Outcome:
        outcome = next(self.outcomes, None) if "WATCHDOG" in fields else Outcome.SENT
        if outcome is None:
            self.enough.set()
        return outcome or Outcome.SENT


@pytest.mark.parametrize(("refused", "late_s"), [(1, RETRY_S), (5, 31 * RETRY_S)])
async def test_an_agent_that_found_no_room_tries_until_there_is_and_keeps_to_that_moment(
    refused: int, late_s: float
) -> None:
    told = AgentSettings.from_environment({"AGENT_NAME": "Told", "WATCHDOG_USEC": "150000"}, default_name="Told")
    notifier = Crowded(refused)
    runtime = AgentRuntime(BaseAgent._from_settings(told, {}), told, notifier=notifier)
    await runtime.start()
    try:
        async with asyncio.timeout(30):
            await notifier.enough.wait()
    finally:
        await runtime.stop()
    assert runtime._timers.late_s == pytest.approx(late_s)
