"""What bench_overload.py puts under load: a handler that takes 5 ms, ten of them at once."""

from __future__ import annotations

import asyncio

from agentkit import BaseAgent, rpc

HANDLER_S = 0.005
LIMIT = 10


class Busy(BaseAgent):
    @rpc(concurrency=LIMIT)
    async def work(self) -> None:
        await asyncio.sleep(HANDLER_S)


if __name__ == "__main__":
    Busy.main()
