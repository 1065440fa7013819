"""Two agents that call each other while they serve, one request at a time: `python -m tests.faults.ring`."""

from __future__ import annotations

from typing import Any

from agentkit import AgentConfig, BaseAgent, rpc


class Ring(BaseAgent):
    class Config(AgentConfig):
        other: str

    @rpc(concurrency=1)
    async def patient(self, depth: int) -> int:
        return await self._on("patient", depth)

    @rpc(concurrency=1, queue_wait="50ms")
    async def hasty(self, depth: int) -> int:
        return await self._on("hasty", depth)

    async def _on(self, method: str, depth: int) -> Any:
        return depth if not depth else await self.call(self.config.other, method, {"depth": depth - 1})


if __name__ == "__main__":
    Ring.main()
