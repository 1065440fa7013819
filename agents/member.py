"""Member: one agent of a large reference fleet (configs/fleet84.yaml).

It does nothing of its own but needs its dependencies as much as a real agent does: it calls each of them before it is
ready, so a fleet of members only comes up when the order of starting was right.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Annotated, Any

from pydantic import BaseModel, Field

from agentkit import AgentConfig, BaseAgent, CallError, rpc


class Peer(BaseModel, extra="forbid"):
    """Somebody to call at start, written as in `dependencies`."""

    name: str
    required: bool = True  #: false: its absence is noted, nothing more


class WhoAmI(BaseModel):
    name: str
    instance: str
    machine: str
    pid: int
    answered: list[str] = Field(description="the peers that answered at start, as `machine/instance`")
    silent: list[str] = Field(description="the optional peers that did not, by name")


class Member(BaseAgent):
    """Calls its peers at start; serves `echo`, `work` and `whoami`."""

    class Config(AgentConfig):
        calls: tuple[str | Peer, ...] = ()

    config: Config

    async def on_start(self) -> None:
        peers = [Peer(name=peer) if isinstance(peer, str) else peer for peer in self.config.calls]
        answers = await asyncio.gather(*(self.greet(peer) for peer in peers))
        self.answered = [answer for answer in answers if answer]
        self.silent = [peer.name for peer, answer in zip(peers, answers, strict=True) if not answer]

    async def greet(self, peer: Peer) -> str | None:
        """Who answers for `peer`; None for an optional one that does not. Raises CallError for a required one."""
        try:
            who = WhoAmI.model_validate(await self.call(peer.name, "whoami", {}))
        except CallError as exc:
            if peer.required:
                raise
            self.logger.warning("peer.silent", peer=peer.name, error=str(exc))
            return None
        return f"{who.machine}/{who.instance}"

    @rpc(idempotent=True)
    async def echo(self, value: Any = None) -> Any:
        """`value`, unchanged."""
        return value

    @rpc(idempotent=True)
    def work(self, ms: Annotated[float, Field(ge=0, le=60_000)]) -> float:
        """Keep a worker thread waiting for `ms` milliseconds, as a device or a disk would; how long it really took."""
        begun_s = time.perf_counter()
        time.sleep(ms / 1000)
        return (time.perf_counter() - begun_s) * 1000

    @rpc(idempotent=True)
    async def whoami(self) -> WhoAmI:
        """Where this member runs, and who answered when it started."""
        return WhoAmI(
            name=self.name,
            instance=self.instance,
            machine=self.machine,
            pid=os.getpid(),
            answered=self.answered,
            silent=self.silent,
        )


if __name__ == "__main__":
    Member.main()
