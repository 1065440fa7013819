"""The agent that the tests of transport and runtime run as a real process."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from agentkit import AgentConfig, BaseAgent, rpc


class Worker(BaseAgent):
    """Answers, waits, blocks, and writes down what happened to it."""

    class Config(AgentConfig):
        diary: str = ""

    def note(self, what: str) -> None:
        if self.config.diary:
            with open(self.config.diary, "a") as file:
                file.write(f"{what}\n")

    async def on_stop(self) -> None:
        self.note("stopped")

    @rpc
    async def echo(self, x: int) -> int:
        return x

    @rpc
    async def whoami(self) -> int:
        return os.getpid()

    @rpc(timeout="60s")
    async def wait(self, seconds: float) -> str:
        self.note("wait began")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.note("wait cancelled")
            raise
        self.note("wait ended")
        return "waited"

    @rpc(timeout="60s")
    def block(self, seconds: float) -> str:
        time.sleep(seconds)
        return "blocked"

    @rpc
    async def freeze(self, seconds: float) -> None:
        """Nothing of this process's Python runs meanwhile, only libzmq's threads do."""
        self.note("frozen")
        time.sleep(seconds)

    @rpc
    async def left(self) -> dict[str, int]:
        """What this process holds while nobody calls but the one who asks."""
        runtime: Any = self._wiring
        return {
            "in flight": runtime._dispatcher.in_flight,
            "waiting": runtime._dispatcher.waiting,
            "peers": len(runtime._inbox.peers),
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    @rpc
    async def blob(self, size: int) -> bytes:
        return b"x" * size  # zeros would take no memory before somebody reads them


if __name__ == "__main__":
    Worker.main()
