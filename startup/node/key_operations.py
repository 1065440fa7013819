"""What nodes tell each other of keys, and how a node takes on another key of its own while it runs.

Who is revoked spreads from node to node, to those that were away as soon as they are back; who is new is told by operators only, so
that a machine whose key was stolen can shut others out, but let nobody in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from agentkit.errors import CallError
from agentkit.observe.log import get_logger
from startup.node.events import NodeEvents
from startup.node.keys import NodeKeys
from startup.node.mesh.mesh import Mesh

log = get_logger("node.keys")

#: How long another node may take to answer, in seconds.
TOLD_WITHIN_S: Final = 5.0
#: Pause before it is said again, in seconds.
SAID_AGAIN_S: Final = 1.0
#: An operator who is connected here has the answer by then, in seconds: our address is opened anew under the new key.
ANSWERED_WITHIN_S: Final = 0.3
#: How a machine is called that is there (plan.membership.PeerState).
_ALIVE: Final = "alive"


class KeyOperations:
    """One node's. Belongs to the running loop; who makes it closes it."""

    def __init__(self, keys: NodeKeys, mesh: Mesh, events: NodeEvents) -> None:
        self._keys = keys
        self._mesh = mesh
        self._events = events
        self._told: set[str] = set()  # machines that know all that is revoked here
        self._telling: set[str] = set()  # ... and those that are being told
        self._tasks: set[asyncio.Task[None]] = set()
        keys.on_change = events.rekeyed
        keys.on_revoked = self._spread

    @property
    def operations(self) -> Mapping[str, Callable[[Mapping[str, Any]], Any]]:
        """For operators."""
        return {"keys_use": self._use}

    @property
    def answers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        """For other nodes (MeshCallbacks.answers)."""
        return {"mesh.keys": self._hear}

    def on_peers(self) -> None:
        """Somebody came or went: those who come back hear who is revoked."""
        if self._keys.ring is None:
            return
        alive = self._alive()
        self._told &= alive
        if self._keys.revoked():
            for machine in alive - self._told:
                self._tell(machine)

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _alive(self) -> set[str]:
        return {machine for machine, state in self._mesh.circle.states().items() if state == _ALIVE}

    def _spread(self, _: Mapping[str, str]) -> None:
        self._told.clear()
        for machine in self._mesh.others():
            self._tell(machine)

    def _tell(self, machine: str) -> None:
        if machine not in self._telling:
            self._telling.add(machine)
            self._spawn(self._until_told(machine), f"keys:revoked {machine}")

    async def _until_told(self, machine: str) -> None:
        """A link that is just back may lose a word or two: it is said again until it was heard, or nobody is there."""
        try:
            while True:
                revoked = self._keys.revoked()
                answer = await self._mesh.ask(machine, "mesh.keys", {"keys": revoked}, TOLD_WITHIN_S)
                if answer is not None and revoked == self._keys.revoked():
                    self._told.add(machine)
                    return
                if machine not in self._alive():
                    return  # on_peers, when it is
                if answer is None:
                    await asyncio.sleep(SAID_AGAIN_S)
        finally:
            self._telling.discard(machine)

    async def _hear(self, said: Mapping[str, Any]) -> dict[str, Any]:
        self._keys.heard(said)
        return {}

    def _use(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Operation `keys_use`: from now on this machine is its newest key; its agents are, as they are restarted."""
        if self._keys.use_newest():
            self._spawn(self._open_anew(), "keys:use")
        return {"own": self._keys.for_new}

    async def _open_anew(self) -> None:
        await asyncio.sleep(ANSWERED_WITHIN_S)
        try:
            await self._mesh.listen_anew()
        except (OSError, CallError) as exc:
            log.error("keys.not_listening", error=str(exc))
        self._events.renew()

    def _spawn(self, work: Any, name: str) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
